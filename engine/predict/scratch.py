"""The scratch that oneDNN takes for a bf16 matrix product on a CPU, for as long as it runs.

Not from a paper: read off what oneDNN asks for on a CPU with AVX-512 (torch 2.13), for products of 10 to 1,024 a side. Another
CPU may ask for other amounts. All in all it is less than a megabyte, which counts in models as small as those that tests run.
"""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np

from engine.predict.buckets import Shape
from engine.predict.sizes import Sizes
from engine.predict.symbolic import Size, later
from engine.predict.tape import Tape
from engine.predict.terms import Factor

_TILE_ROWS, _TILE_COLUMNS, _STEP, _PANEL = 256, 64, 32, 512
_LARGE = 2048  # hidden width from which scratch is no more than a rounding


def scratch_bytes(m: Any, k: Any, n: Any, turned: bool) -> Any:
    """Of (m, k) × (k, n): a packed panel of the second, a tile of fp32 sums, and a copy of the first if it lies `turned`.

    Numbers or arrays.
    """
    inner = -(-k // _STEP) * _STEP
    wide = np.minimum(-(-inner // (2 * _STEP)) * _STEP, 2 * _PANEL)
    panel = inner + (inner > _PANEL) * (wide - inner)
    rows = -(-m // -(-m // _TILE_ROWS))
    copied = rows * (inner + (inner % _PANEL == 0) * _STEP) * 2 + 128 if turned else 0
    return 2 * _TILE_COLUMNS * panel + rows * np.minimum(n, _TILE_COLUMNS) * 4 + 1024 + copied


def matmul(tape: Tape, sizes: Sizes, m: Shape, k: Shape, n: Shape, turned: bool = False) -> None:
    """One product, if it is in bf16. For very many layouts at once it is left out where it is no more than a rounding."""
    if not sizes.wide:
        return
    sides: list[Any] = [prod(factor.value for factor in shape) for shape in (m, k, n)]
    if not any(isinstance(side, Size) for side in sides):
        scratch: Any = int(scratch_bytes(sides[0], sides[1], sides[2], turned))
    elif sizes.model.hidden < _LARGE:
        scratch = later(scratch_bytes, *sides, turned)
    else:
        return
    tape.touch("scratch of a matrix product", Factor("scratch", scratch))
