"""Kinds of context parallelism, by what a rank does."""

from __future__ import annotations

from typing import Literal, get_args

from engine.spec.parts import ContextParallelName, LayoutSpec

# None, as cp is 1, or its kind. Attention over two ranks has no step between the first and the last.
Context = Literal["", "ring", "ring of 2", "all_gather", "all_gather of 2", "ulysses"]
CONTEXTS: tuple[Context, ...] = get_args(Context)


def kind_of(context: Context) -> ContextParallelName:
    """The kind of context parallelism; the default if there is none."""
    kinds: dict[Context, ContextParallelName] = {
        "": "ring", "ring": "ring", "ring of 2": "ring", "all_gather": "all_gather", "all_gather of 2": "all_gather",
        "ulysses": "ulysses",
    }  # fmt: skip
    return kinds[context]


def context_of(layout: LayoutSpec) -> Context:
    """What ranks of a layout do."""
    kind = layout.context_parallel
    if layout.cp == 1 or kind == "ulysses":
        return "" if layout.cp == 1 else "ulysses"
    if kind == "ring":
        return "ring of 2" if layout.cp == 2 else "ring"
    return "all_gather of 2" if layout.cp == 2 else "all_gather"
