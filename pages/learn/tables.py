"""Plain tables of the lessons, as HTML. On a narrow page each row becomes a block: style.css."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape


def plain(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table whose first column names its rows. Cells are escaped."""
    names = "".join(f"<th scope=col>{escape(name)}</th>" for name in head)
    body = ""
    for first, *others in rows:
        cells = "".join(
            f'<td data-label="{escape(name)}">{escape(cell)}</td>' for name, cell in zip(head[1:], others, strict=True)
        )
        body += f'<tr><th scope=row data-label="{escape(head[0])}">{escape(first)}</th>{cells}</tr>'
    return f'<table class="ss-plain"><thead><tr>{names}</tr></thead><tbody>{body}</tbody></table>'
