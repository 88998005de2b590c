"""Every collective and transfer of a run, with its bytes, as the sum it is."""
