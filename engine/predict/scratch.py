"""The scratch that oneDNN takes for a bf16 matrix product on a CPU, for as long as it runs."""

from __future__ import annotations

from engine.predict.buckets import Shape
from engine.predict.sizes import Sizes
from engine.predict.tape import Tape
from engine.predict.terms import Factor


def matmul(tape: Tape, sizes: Sizes, rows: Shape, inner: Factor | None, columns: Shape, over: Shape = ()) -> None:
    """(rows, inner) × (inner, columns); or (over, rows)ᵀ × (over, columns), whose first is copied to be read in order."""
    return
