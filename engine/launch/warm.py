"""What a process imports before it becomes a rank, or forks ranks: all that a run would otherwise import on its way."""

from __future__ import annotations

from importlib import import_module

_NEEDED = (
    # torch puts off much of itself: the first optimizer imports torch._dynamo, the first profiler some 820 modules more.
    # That is 2 s alone and 4 s in each of four ranks. This one module brings both.
    "torch._inductor.config",
    "torch.profiler",
    "pyarrow.parquet",
    "pyarrow.pandas_compat",  # imported when the first table is made of Python's own values
    "engine.worker",
)


def preload() -> None:
    """Import what a run needs. No torch operation is run: a fork after one would leave the threads of it behind."""
    for name in _NEEDED:
        import_module(name)
