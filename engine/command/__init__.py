"""The command line, `python -m engine …`: one module a command, and the flags that they share."""
