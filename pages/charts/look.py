"""Colours and fonts of every chart. One colour has one meaning. No chart relies on hue alone.

Memory categories, axes of the mesh and kinds of action have a set of colours each. No colour is in two sets. Any two colours of
all three can be told apart, with a colour-vision deficiency too: tests/charts/test_colours.py.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

from engine.tables import CATEGORIES, KV_CACHE
from engine.topology import AXES_BY_FREQUENCY, EP, CallAxis
from pages.charts.words import Language, Words, words

Theme = Literal["light", "dark"]


class View(NamedTuple):
    """Theme and language of a reader. A chart is cached for each view and shared by all sessions that have it."""

    theme: Theme
    language: Language


NARROW = 330  # pixels of a chart's plot, below which there is less text in it
# What happens on a timeline.
LANES = (
    "forward (F)",
    "backward (B, I)",
    "weight gradient (W)",
    "reduce, tie, gather, step",
    "collective",
    "send, receive",
)
# On a narrow page a legend has columns, so that it is not cut off. 0: all in one row.
_LEGEND: dict[str, Any] = {"orient": "top", "title": None, "symbolType": "square", "symbolSize": 110, "padding": 0, "offset": 10}
_LEGEND |= {"columns": {"expr": f"width < {NARROW - 80} ? 1 : width < {NARROW} ? 2 : 0"}, "rowPadding": 4}
MAX_BARS = 3_000  # in one view; a browser pans more too slowly


@dataclass(frozen=True)
class Look:
    """The colours of one theme and their meanings.

    The plain hues, from `blue` to `brown`, are for charts that show none of the three sets.
    """

    theme: Theme
    background: str
    text: str
    faint: str  # tracks and grid lines, never data
    blue: str
    orange: str
    green: str
    pink: str
    grey: str
    ink: str
    brown: str
    on_colour: str  # text on a coloured bar
    stages: tuple[str, str]  # first and last colour of the ramp that pipeline stages are drawn in
    categories: tuple[str, ...]  # of memory, in the order of `CATEGORIES`, and the KV cache
    axes: tuple[tuple[CallAxis, str], ...]
    lanes: tuple[str, ...]  # in the order of `LANES`
    say: Words = words("en")  # noqa: RUF009  its catalog never changes

    @property
    def category(self) -> dict[str, str]:
        """Colours of the memory categories."""
        return dict(zip((*CATEGORIES, KV_CACHE), self.categories, strict=True))

    @property
    def axis(self) -> dict[str, str]:
        """Colours of the mesh's axes, in the order of legends."""
        hues = dict(self.axes)
        return {axis: hues[axis] for axis in (*AXES_BY_FREQUENCY, EP)}

    @property
    def lane(self) -> dict[str, str]:
        """Colours of what happens on a timeline."""
        return dict(zip(LANES, self.lanes, strict=True))

    def stage(self, stage: int, stages: int) -> str:
        """The colour of a pipeline stage. Stages take the colours of a ramp in their order, and neighbours differ."""
        return _mix(*self.stages, stage / max(1, stages - 1))


LIGHT = Look(
    theme="light",
    background="#FFFFFF",
    text="#24292F",
    faint="#EDF0F3",
    blue="#0072B2",
    orange="#D55E00",
    green="#009E73",
    pink="#CC79A7",
    grey="#767676",
    ink="#2F3540",
    brown="#8B5A2B",
    on_colour="#FFFFFF",
    stages=("#1D4FA3", "#1F9A94"),
    categories=("#0542B4", "#D97A01", "#2A9370", "#D566B9", "#2E2D33", "#545862", "#533800"),
    axes=(("tp", "#B12138"), ("cp", "#7187FA"), ("dp", "#4D5A9E"), ("pp", "#7A9E58"), ("ep", "#2C0250")),
    lanes=("#8355E2", "#966E01", "#515904", "#4B0079", "#1D7B85", "#3F3E5C"),
)

DARK = Look(
    theme="dark",
    background="#0F141A",
    text="#E6EAEE",
    faint="#232B34",
    blue="#56B4E9",
    orange="#E69F00",
    green="#00B98A",
    pink="#E38FBD",
    grey="#A0A0A0",
    ink="#E3E7EC",
    brown="#C9A27E",
    on_colour="#0F141A",
    stages=("#5B93F5", "#7FE0D0"),
    categories=("#468AFC", "#B44801", "#4DB66A", "#F19CC4", "#808583", "#E0E8F9", "#F4CC8A"),
    axes=(("tp", "#D84F4E"), ("cp", "#8F69C0"), ("dp", "#86A4FD"), ("pp", "#B9FCBC"), ("ep", "#BC9B01")),
    lanes=("#7452E8", "#FCED4B", "#A2C514", "#C07FC2", "#3BD3FC", "#6F6A8A"),
)


def look(view: View) -> Look:
    return replace(DARK if view.theme == "dark" else LIGHT, say=words(view.language))


def lane(kind: str) -> str:
    """The colour name (`Look.lane`) of an action's or a collective's kind."""
    named = {"F": "forward (F)", "B": "backward (B, I)", "I": "backward (B, I)", "W": "weight gradient (W)"}
    named |= dict.fromkeys(("reduce", "tie", "gather", "step"), "reduce, tie, gather, step")
    named |= dict.fromkeys(("send", "recv"), "send, receive")
    return named.get(kind, "collective")


def config(style: Look) -> dict[str, Any]:
    """Vega-Lite settings that every chart shares. The page's own font is used."""
    label = {"labelFontSize": 12, "labelColor": style.text, "titleFontSize": 12, "titleColor": style.text, "titleFontWeight": 500}
    return {
        "background": "transparent",
        "view": {"stroke": "transparent"},
        "axis": label | {"gridColor": style.faint, "domainColor": style.grey, "tickColor": style.grey, "labelLimit": 320},
        "axisXQuantitative": {"labelFlush": True, "labelBound": True},  # no number is cut off at the end of the axis
        "axisY": {"domain": False, "ticks": False, "labelPadding": 6},
        "legend": label | _LEGEND,
        "bar": {"discreteBandSize": {"band": 0.78}},
        "scale": {"bandPaddingInner": 0.2},
    }


def _mix(first: str, last: str, share: float) -> str:
    """The colour `share` of the way from `first` to `last`, both written as #RRGGBB."""
    channels = ((int(first[i : i + 2], 16), int(last[i : i + 2], 16)) for i in (1, 3, 5))
    return "#" + "".join(f"{round(a + (b - a) * share):02X}" for a, b in channels)
