"""Imports all modules that a run needs, in a process that becomes a rank or forks ranks."""

from __future__ import annotations

from importlib import import_module

_NEEDED = (
    # torch imports much of itself late: the first optimizer imports torch._dynamo, the first profiler 820 modules more.
    # That is 2 s alone and 4 s in each of four ranks. This one module brings both.
    "torch._inductor.config",
    "torch.profiler",
    "pyarrow.parquet",
    "pyarrow.pandas_compat",  # imported when the first table is made of Python values
    "pandas.core.arrays.arrow.extension_types",  # imported when the first table is written
    "torch.profiler._cupti_monitor",  # imported when the first profile begins
    "engine.worker",
)


def preload() -> None:
    """Import what a run needs. No torch operation is run: its threads would not survive a fork."""
    for name in _NEEDED:
        import_module(name)
