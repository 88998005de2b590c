"""The command line, `python -m engine …`: one module for each command, and the flags that they share."""
