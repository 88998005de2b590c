"""Small matrices as HTML. A cell has the colour of the rank that holds it. Captions name the rank."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from pages.charts.look import Look
from pages.learn.toys import Array


def owners(style: Look) -> tuple[str, ...]:
    """A colour for each of up to eight ranks. Captions name the rank too, so no information is only in the hue."""
    return (style.blue, style.orange, style.green, style.pink, style.brown, style.grey, style.ink, style.stages[1])


def matrix(
    name: str,
    cells: Array,
    columns: Sequence[str] = (),
    rows: Sequence[str] = (),
    owner: str = "",
    part: str = "",
    sums: Sequence[Sequence[str]] = (),
) -> str:
    """`columns` or `rows`: the colour of each column's or row's owner. `owner`: the colour of all cells.

    `part`, in a `product`: left, right or out. `sums`: how each cell is computed, which is shown when one points at it.
    """
    lines = []
    for i, row in enumerate(cells):
        line = ""
        for j, value in enumerate(row):
            colour = columns[j] if columns else rows[i] if rows else owner
            style = f' style="--owner:{colour}"' if colour else ""
            told = ""
            if sums:
                total = escape(sums[i][j])
                told = f' tabindex="0" data-sum="{total}" aria-label="{number(value)} = {total}"'
            line += f"<td{style}{told}>{number(value)}</td>"
        lines.append(f"<tr>{line}</tr>")
    return (
        f'<figure class="ss-matrix{f" ss-{part}" if part else ""}"><figcaption>{escape(name)}</figcaption>'
        f'<table aria-label="{escape(name)}"><tbody>{"".join(lines)}</tbody></table></figure>'
    )


def dots(left: Array, right: Array) -> list[list[str]]:
    """ "1·2 + 3·0": how each number of a product is computed."""
    return [
        [" + ".join(f"{_factor(a)}·{_factor(b)}" for a, b in zip(row, column, strict=True)) for column in right.T] for row in left
    ]


def _factor(value: float) -> str:
    return f"({number(value)})" if value < 0 else number(value)


def line(*parts: str, product: bool = False) -> str:
    """Matrices and the signs between them in one line. `product`: pointing at a number of the result marks its row and column."""
    shown = (part if part.startswith("<") else f"<span>{escape(part)}</span>" for part in parts)
    return f'<div class="ss-line{" ss-product" if product else ""}">{"".join(shown)}</div>'


def number(value: float) -> str:
    """A whole number without decimals, any other with two; with a real minus sign."""
    text = f"{value:.0f}" if value == int(value) else f"{value:.2f}"
    return text.replace("-", "−")
