"""What fits where: the best layout of every model on every number of devices."""

from __future__ import annotations

from collections.abc import Sequence

import altair as alt
import pandas as pd

from pages.charts.drawing import Drawing, finish
from pages.charts.look import Look
from pages.charts.roles import CHOSEN
from pages.charts.units import in_bytes
from pages.charts.words import Words

_MOST_MFU = 0.7  # a cell of this MFU or more has the darkest colour


def heatmap(cells: pd.DataFrame, style: Look) -> Drawing:
    """`cells`: model, ranks, mfu (NaN where nothing fits), layout, reason. Grey cells say why."""
    say = style.say
    rows = cells.assign(
        row=range(len(cells)),
        fits=cells["mfu"].notna(),
        text=[_cell_text(mfu, size, say) for mfu, size in zip(cells["mfu"], cells["memory_bytes"], strict=True)],
        ink=[_text_colour(mfu, style) for mfu in cells["mfu"]],
        memory=[in_bytes(size) if size else "–" for size in cells["memory_bytes"]],
        why=[say.sentence(reason) or say("fits") for reason in cells["reason"]],
    )
    models = list(dict.fromkeys(cells["model"]))
    counts, close = sorted(set(cells["ranks"])), alt.Scale(paddingInner=0.02, paddingOuter=0)
    x = alt.X("ranks:O", sort=counts, title=say("devices"), axis=alt.Axis(labelAngle=0, format=","), scale=close)
    y = alt.Y("model:N", sort=models, title=None, scale=alt.Scale(paddingInner=0.05, paddingOuter=0))
    tooltip = [
        alt.Tooltip("model:N", title=say("model")),
        alt.Tooltip("ranks:O", title=say("devices")),
        alt.Tooltip("layout:N", title=say("best layout")),
        alt.Tooltip("memory:N", title=say("memory")),
        alt.Tooltip("text:N", title="MFU"),
        alt.Tooltip("why:N", title=say("why")),
    ]
    shade = alt.Scale(domain=[0, _MOST_MFU], range=[style.faint, style.blue], interpolate="rgb", clamp=True)
    good = (
        alt.Chart(rows[rows["fits"]])
        .mark_rect(cornerRadius=2)
        .encode(x=x, y=y, color=alt.Color("mfu:Q", scale=shade, legend=None), tooltip=tooltip)
        .add_params(alt.selection_point(name=CHOSEN, fields=["row"], on="click", toggle=False))
    )
    bad = alt.Chart(rows[~rows["fits"]]).mark_rect(color=style.grey, opacity=0.3, cornerRadius=2)
    # A layer for each text colour: Vega-Lite cannot combine a colour scale with literal colours in one encoding.
    words = [
        alt.Chart(written)
        .mark_text(fontSize=12, fontWeight=600, tooltip=None, aria=False, color=str(ink))
        .encode(x=x, y=y, text="text:N")
        for ink, written in rows.groupby("ink")
    ]
    layers = [good, bad.encode(x=x, y=y, tooltip=tooltip), *words]
    title = say("{count} of {all} combinations fit", count=int(rows["fits"].sum()), all=len(rows))
    return Drawing(
        subject=say("Best layout by model and number of devices"),
        title=title,
        reading=say(
            "Each cell is the model FLOPs utilization (MFU) of the fastest layout that fits, at two sequences a device and step; "
            "grey cells do not fit, and say why when pointed at. Click a cell to plan it, or choose its model and number at "
            "the left."
        ),
        spec=finish(alt.layer(*layers).properties(height=38 * len(models)), style, title),
        table=cells.drop(columns="reason").assign(why=rows["why"]),
    )


def _cell_text(mfu: float, size: int, say: Words) -> str:
    """The text of a cell: a dash where there is no layout."""
    if mfu == mfu:
        return f"{100 * mfu:.0f}%"
    return say("too large") if size else "–"


def _text_colour(mfu: float, style: Look) -> str:
    """The text colour that has the higher contrast with the cell's colour."""
    if mfu != mfu:
        return style.text
    share = min(1.0, mfu / _MOST_MFU)
    ground = [(1 - share) * one + share * other for one, other in zip(_rgb(style.faint), _rgb(style.blue), strict=True)]
    return max((style.text, style.on_colour), key=lambda ink: _contrast(_rgb(ink), ground))


def _rgb(colour: str) -> list[float]:
    """ "#0072B2" as shares of red, green and blue."""
    return [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]


def _contrast(one: Sequence[float], other: Sequence[float]) -> float:
    """As WCAG 2 defines it, from 1 to 21."""
    dark, light = sorted(_luminance(colour) for colour in (one, other))
    return (light + 0.05) / (dark + 0.05)


def _luminance(colour: Sequence[float]) -> float:
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in colour]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
