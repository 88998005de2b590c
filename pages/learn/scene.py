"""A scene: shapes that move from step to step, with a sentence for each step. Python draws it, the browser moves it."""

from __future__ import annotations

from dataclasses import dataclass, field
from html import escape

WIDTH = 480  # of every scene, in its own units; a page draws it from 340 to 620 pixels wide
TEXT = 15  # size of its texts, so that they can be read at 340 pixels


@dataclass
class Thing:
    """A shape, drawn around (0, 0), and where it is: from `step` on at (x, y) with `opacity`, until the next entry."""

    svg: str
    at: list[tuple[int, float, float, float]] = field(default_factory=list)

    def put(self, step: int, x: float, y: float, opacity: float = 1.0) -> Thing:
        if self.at and self.at[-1][0] == step:
            self.at.pop()
        self.at.append((step, round(x, 1), round(y, 1), opacity))
        return self

    def hide(self, step: int) -> Thing:
        """Make it invisible where it is."""
        _, x, y, _ = self.at[-1]
        return self.put(step, x, y, 0.0)


@dataclass
class Scene:
    """`said`: a sentence for each step; their number is the number of steps. `still`: the step that tells most, for readers who
    want no motion. `fixed`: what does not move, as SVG.
    """

    label: str
    height: float
    fixed: str = ""
    things: list[Thing] = field(default_factory=list)
    said: list[str] = field(default_factory=list)
    still: int = 0

    def add(self, svg: str) -> Thing:
        self.things.append(Thing(svg))
        return self.things[-1]


def text(x: float, y: float, words: str, anchor: str = "middle", size: float = TEXT, bold: bool = False) -> str:
    weight = ' font-weight="600"' if bold else ""
    return f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}" font-size="{size:g}"{weight}>{escape(words)}</text>'


def box(x: float, y: float, width: float, height: float, fill: str, *, corner: float = 4, frame: str = "none") -> str:
    return (
        f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="{corner:g}" fill="{fill}" stroke="{frame}" '
        'stroke-width="1.5"/>'
    )
