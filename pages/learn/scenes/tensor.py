"""The columns of a matrix on their way to the ranks, and the result on its way back through an all-reduce."""

from __future__ import annotations

import numpy as np

from pages.charts.look import Look
from pages.learn.matrices import number, owners
from pages.learn.scene import WIDTH, Scene, box, text
from pages.learn.toys import Array, TwoLayers

_W, _H = 25, 18  # a cell
_WHOLE_Y, _RANKS_Y = 22, 130
_X, _A, _INNER, _B, _PARTIAL = (_RANKS_Y + offset for offset in (30, 84, 174, 228, 318))  # rows of a rank's column
_HEIGHT = _PARTIAL + 2 * _H + 8
_SPLIT, _INPUT, _FIRST, _SECOND, _SUM, _BACK = range(1, 7)


def scene(layers: TwoLayers, tp: int, style: Look) -> Scene:
    """z = relu(x · A) · B on `tp` ranks. A step for each thing that happens."""
    say, slices, colours = style.say, layers.slices(tp), owners(style)
    wide, each = WIDTH / tp, 4 // tp
    made = Scene(
        say("Columns of A and rows of B go to {count} ranks, and one all-reduce adds up the results.", count=tp), _HEIGHT
    )
    places = {"A": 20.0, "B": 180.0, "z": 350.0}
    made.fixed = "".join(text(x + 2 * _W, _WHOLE_Y - 6, name, bold=True) for name, x in places.items())
    made.fixed += "".join(
        text((rank + 0.5) * wide, _RANKS_Y + 6, say("rank {rank}", rank=rank), bold=True)
        + box(rank * wide + 2, _RANKS_Y - 10, wide - 4, _HEIGHT - _RANKS_Y + 6, "none", frame=colours[rank])
        for rank in range(tp)
    )
    total = np.sum([own.partial for own in slices], axis=0)
    for rank, own in enumerate(slices):
        mid, colour = (rank + 0.5) * wide, colours[rank]

        def left(columns: int, middle: float = mid) -> float:
            return middle - columns * _W / 2

        a, b = made.add(cells(own.a, colour)), made.add(cells(own.b, colour))
        a.put(0, places["A"] + rank * each * _W, _WHOLE_Y).put(_SPLIT, left(each), _A)
        b.put(0, places["B"], _WHOLE_Y + rank * each * _H).put(_SPLIT, left(4), _B)
        names = ("x", "A", "relu(x · A)", "B", say("partial sum"))
        for name, y in zip(names, (_X, _A, _INNER, _B, _PARTIAL), strict=True):
            made.fixed += text(mid, y - 4, name, size=12)
        made.add(cells(layers.x, style.grey)).put(_INPUT, left(4), _X)
        made.add(cells(own.inner, colour)).put(_FIRST, left(each), _INNER)
        partial = made.add(cells(own.partial, colour)).put(_SECOND, left(4), _PARTIAL)
        partial.put(_SUM, places["z"], _WHOLE_Y, 0.35).hide(_BACK)
        made.add(cells(total, style.grey)).put(_SUM, places["z"], _WHOLE_Y).put(_BACK, left(4), _PARTIAL)
    made.add(cells(total, style.grey)).put(_SUM, places["z"], _WHOLE_Y)
    made.said = [
        say("The whole matrices A and B, as one device would hold them."),
        say.plural(
            "One rank gets all columns of A and all rows of B.",
            "Each of the {count} ranks gets its columns of A and the rows of B that belong to them.",
            tp,
        ),
        say("Every rank has the same input x."),
        say("relu(x · its columns of A): some columns of the result, whole. Nothing is sent."),
        say("That, times its rows of B: a partial sum of every number of z."),
        say("All-reduce, first half: the partial sums are added up."),
        say("All-reduce, second half: every rank gets the total z, and the next layer can begin."),
    ]
    made.still = _SECOND
    return made


def cells(matrix: Array, colour: str) -> str:
    """A matrix as numbers in coloured cells, its corner at (0, 0)."""
    drawn = ""
    for i, row in enumerate(matrix):
        for j, value in enumerate(row):
            drawn += f'<g fill-opacity="0.28">{box(j * _W + 1, i * _H + 1, _W - 2, _H - 2, colour, corner=2, frame=colour)}</g>'
            drawn += text((j + 0.5) * _W, (i + 1) * _H - 5, number(value), size=12.5)
    return drawn
