"""The backward pass and its all-reduces beside it: what is hidden behind computation, and what is exposed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import altair as alt
import pandas as pd

from pages.charts.drawing import Drawing, finish
from pages.charts.look import Look

_ROW_PX = 44


class Bar(NamedTuple):
    """What happens from `start` to `end`, in units of time. `kind`: forward, backward, hidden or exposed."""

    kind: str
    label: str
    start: float
    end: float


def overlap(bars: Sequence[Bar], captions: tuple[str, str, str], style: Look) -> Drawing:
    """Two rows, computation and communication. `captions` are subject, title and reading."""
    say = style.say
    named = {
        "forward": say("forward"), "backward": say("backward"),
        "hidden": say("hidden"), "exposed": say("exposed"),
    }  # fmt: skip
    lane = style.lane
    colour = {
        "forward": lane["forward (F)"], "backward": lane["backward (B, I)"], "hidden": lane["collective"], "exposed": style.pink,
    }  # fmt: skip
    rows = pd.DataFrame(bars)
    compute, communication = say("computation"), say("communication")
    rows["row"] = [compute if bar.kind in ("forward", "backward") else communication for bar in bars]
    present = [kind for kind in named if kind in set(rows["kind"])]
    rows["name"], rows["mid"] = rows["kind"].map(named), (rows["start"] + rows["end"]) / 2
    y = alt.Y("row:N", sort=[compute, communication], title=None)
    x = alt.X("start:Q", title=say("units of time"), scale=alt.Scale(domain=[0, float(rows["end"].max())], nice=False))
    drawn = (
        alt.Chart(rows)
        .mark_bar(stroke=style.background, strokeWidth=1)
        .encode(
            x=x,
            x2="end:Q",
            y=y,
            color=alt.Color(
                "name:N", scale=alt.Scale(domain=[named[kind] for kind in present], range=[colour[kind] for kind in present])
            ),
            tooltip=[
                alt.Tooltip("name:N", title=say("kind")),
                alt.Tooltip("label:N", title=say("layer")),
                alt.Tooltip("start:Q", title=say("start"), format=".2f"),
                alt.Tooltip("end:Q", title=say("end"), format=".2f"),
            ],
        )
    )
    wide = rows[(rows["end"] - rows["start"]) / float(rows["end"].max()) > 0.03]
    written = alt.Chart(wide).mark_text(fontSize=12, color=style.on_colour, tooltip=None).encode(x="mid:Q", y=y, text="label:N")
    subject, title, reading = captions
    table = rows[["name", "label", "start", "end"]].rename(
        columns={"name": say("kind"), "label": say("layer"), "start": say("start"), "end": say("end")}
    )
    return Drawing(subject, title, reading, finish((drawn + written).properties(height=2 * _ROW_PX), style, title), table)
