"""Charts of the lessons: bars against a capacity, curves with the reader's own point, maps of a matrix."""

from __future__ import annotations

from typing import Any

import altair as alt
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pages.charts.drawing import Drawing, colours, finish
from pages.charts.look import Look
from pages.charts.names import categories
from pages.charts.units import byte_unit, in_bytes

_ROW_PX = 46


def stacks(rows: pd.DataFrame, capacity: tuple[str, int] | None, captions: tuple[str, str, str], style: Look) -> Drawing:
    """Horizontal bars of bytes by category, and a line at the capacity of one device.

    `rows` has the columns bar, category, bytes; the categories are those of `Look.category`. `capacity` is (name, bytes) of a
    device. `captions` are subject, title and reading.
    """
    say = style.say
    totals = rows.groupby("bar", sort=False)["bytes"].sum()
    most = max(float(totals.max()), float(capacity[1]) if capacity else 0.0)
    unit = byte_unit(most)
    bars = [str(bar) for bar in totals.index]
    named = categories(say)
    order = rows["category"].map(list(style.category).index)
    drawn = rows.assign(amount=rows["bytes"] / unit.size, order=order, category=rows["category"].map(named))
    y = alt.Y("bar:N", sort=bars, title=None, scale=alt.Scale(domain=bars))
    room = alt.Scale(domain=[0, 1.3 * most / unit.size], nice=False)  # for the texts behind bars, on a phone too
    x = alt.X("amount:Q", title=say("memory ({unit})", unit=unit.name), axis=alt.Axis(tickCount=8), scale=room)
    bar = (
        alt.Chart(drawn[drawn["bytes"] > 0])
        .mark_bar(stroke=style.background, strokeWidth=0.8)
        .encode(
            x=x.stack(True),
            y=y,
            color=alt.Color("category:N", scale=colours(style.category, list(drawn["category"]), named)),
            order=alt.Order("order:Q"),
            tooltip=[
                alt.Tooltip("bar:N", title=say("bar")),
                alt.Tooltip("category:N", title=say("category")),
                alt.Tooltip("bytes:Q", title=say("bytes"), format=","),
            ],
        )
    )
    ends = pd.DataFrame({"bar": bars, "amount": totals.to_numpy() / unit.size, "said": [in_bytes(total) for total in totals]})
    layers: list[Any] = [bar]
    height = _ROW_PX * len(bars)
    if capacity:
        line = pd.DataFrame({"amount": [capacity[1] / unit.size], "said": [f"{capacity[0]}: {in_bytes(capacity[1])}"]})
        at = alt.Chart(line).encode(x="amount:Q")
        layers.append(at.mark_rule(color=style.text, strokeWidth=2, strokeDash=[5, 3]))
        layers.append(
            at.mark_text(align="left", dx=5, dy=-8, fontSize=12, fontWeight=600, color=style.text).encode(
                y=alt.value(0), text="said:N"
            )
        )
    written = alt.Chart(ends).encode(x="amount:Q", y=y, text="said:N")
    text: dict[str, Any] = {"align": "left", "dx": 7, "fontSize": 13, "fontWeight": 600}
    # The background around a text covers the line of the capacity, where it goes through the text.
    layers.append(written.mark_text(**text, stroke=style.background, strokeWidth=6, strokeJoin="round"))
    layers.append(written.mark_text(**text, color=style.text))
    subject, title, reading = captions
    chart = alt.layer(*layers).properties(height=height)
    spec = finish(chart, style, title)
    spec["padding"] = {"top": 20, "left": 0, "right": 0, "bottom": 6}
    table = rows.pivot_table(index="bar", columns="category", values="bytes", aggfunc="sum", sort=False, fill_value=0)
    return Drawing(
        subject,
        title,
        reading,
        spec,
        table.assign(total=totals).reset_index().rename_axis(columns=None).rename(columns={"bar": say("bar")}),
    )


def curves(
    rows: pd.DataFrame,
    axes: tuple[str, str],
    here: Any,
    colour: dict[str, str],
    captions: tuple[str, str, str],
    style: Look,
    *,
    form: str = ",.3~r",
    log: bool = False,
) -> Drawing:
    """Lines over x, one for each series, and a mark at the reader's x.

    `rows` has the columns x, y, series. `axes` are the titles of x and y. `here` is the reader's x, or None. `form` is the number
    format of y. Series differ in dash and colour. `log`: the axis of y is logarithmic.
    """
    names = [name for name in colour if name in set(rows["series"])]
    dashes = [[1, 0], [7, 3], [2, 3], [9, 3, 2, 3]]
    x = alt.X("x:O", title=axes[0], axis=alt.Axis(labelAngle=0, format=","))
    # From 0, with room for texts above points. If all values are 0, the line is at the bottom.
    linear = alt.Scale(domain=[0, 1.15 * float(rows["y"].max()) or 1.0])
    y = alt.Y("y:Q", title=axes[1], axis=alt.Axis(tickCount=5, format=form), scale=alt.Scale(type="log") if log else linear)
    lines = alt.Chart(rows).encode(
        x=x,
        y=y,
        color=alt.Color("series:N", scale=alt.Scale(domain=names, range=[colour[n] for n in names]), legend=_legend(names)),
        tooltip=[
            alt.Tooltip("series:N", title=style.say("line")),
            alt.Tooltip("x:O", title=axes[0]),
            alt.Tooltip("y:Q", title=axes[1], format=form),
        ],
    )
    dash = alt.StrokeDash("series:N", scale=alt.Scale(domain=names, range=dashes[: len(names)]), legend=None)
    layers: list[Any] = [
        lines.mark_line(strokeWidth=2.5).encode(strokeDash=dash),
        lines.mark_point(filled=True, size=45, opacity=1),
    ]
    chosen = rows[rows["x"] == here] if here is not None else rows.head(0)
    if len(chosen):
        layers.insert(0, alt.Chart(chosen.head(1)).mark_rule(color=style.grey, strokeWidth=1.5, strokeDash=[4, 3]).encode(x=x))
        rises = bool(rows["y"].iloc[-1] > rows["y"].iloc[0])
        highest = chosen["y"] == chosen["y"].max()
        # Texts are placed where there is no line: above the highest point, below the others.
        for points, above in ((chosen[highest], True), (chosen[~highest], False)):
            left = rises == above
            label = alt.Chart(points).mark_text(
                align="right" if left else "left", dx=-8 if left else 8, dy=-11 if above else 13, fontSize=13, fontWeight=600,
                color=style.text,
            )  # fmt: skip
            layers.append(label.encode(x=x, y=y, text=alt.Text("y:Q", format=form)))
    subject, title, reading = captions
    table = rows.pivot_table(index="x", columns="series", values="y", aggfunc="first", sort=False).reset_index()
    chart = alt.layer(*layers).properties(height=250)
    return Drawing(
        subject, title, reading, finish(chart, style, title), table.rename_axis(columns=None).rename(columns={"x": axes[0]})
    )


def heat(
    matrix: NDArray[np.float64], rows: list[str], columns: list[str], axes: tuple[str, str], captions: tuple[str, str, str],
    style: Look, *, signed: bool = False, written: bool = False, height: int = 300,
) -> Drawing:  # fmt: skip
    """A matrix as coloured cells; NaN is an empty cell. `written`: cells contain their numbers."""
    down, across = np.meshgrid(range(len(rows)), range(len(columns)), indexing="ij")
    cells = pd.DataFrame({"i": down.ravel(), "j": across.ravel(), "value": matrix.ravel()}).dropna()
    cells["row"], cells["column"] = cells["i"].map(rows.__getitem__), cells["j"].map(columns.__getitem__)
    # A name can occur twice (a word in a sentence), so positions are numbers, and names are their labels.
    y = alt.Y("i:O", title=axes[0], axis=_named(rows), scale=alt.Scale(domain=list(range(len(rows))), paddingInner=0))
    x = alt.X("j:O", title=axes[1], axis=_named(columns), scale=alt.Scale(domain=list(range(len(columns))), paddingInner=0))
    scale = (
        alt.Scale(domain=[-1, 0, 1], range=[style.orange, style.faint, style.blue], interpolate="rgb")
        if signed
        else alt.Scale(domain=[0, max(float(cells["value"].max()), 1e-9)], range=[style.faint, style.blue])
    )
    base = alt.Chart(cells).encode(x=x, y=y)
    square = base.mark_rect(stroke=style.background, strokeWidth=0.6 if written else 0).encode(
        color=alt.Color("value:Q", scale=scale, legend=_swatches(signed)),
        tooltip=[
            alt.Tooltip("row:N", title=axes[0]),
            alt.Tooltip("column:N", title=axes[1]),
            alt.Tooltip("value:Q", title=style.say("value"), format=".3f"),
        ],
    )
    layers: list[Any] = [square]
    if written:
        half = 0.55 * float(cells["value"].max())
        ink = alt.when(alt.datum["value"] > half).then(alt.value(style.on_colour)).otherwise(alt.value(style.text))
        layers.append(base.mark_text(fontSize=12).encode(text=alt.Text("value:Q", format=".2f"), color=ink))
    subject, title, reading = captions
    table = pd.DataFrame(matrix, columns=_made_unique(columns)).round(3)
    table.insert(0, axes[0], rows)
    return Drawing(subject, title, reading, finish(alt.layer(*layers).properties(height=height), style, title), table)


def columns(
    rows: pd.DataFrame, axes: tuple[str, str], captions: tuple[str, str, str], style: Look, *, form: str = ",.3~r"
) -> Drawing:
    """Vertical bars, one for each name; the highest has a stronger colour. `rows` has the columns name and value."""
    names = [str(name) for name in rows["name"]]
    top = rows["value"] == rows["value"].max()
    drawn = rows.assign(colour=np.where(top, style.pink, style.grey))
    x = alt.X("name:N", sort=names, title=axes[0], axis=alt.Axis(labelAngle=0))
    y = alt.Y(
        "value:Q",
        title=axes[1],
        axis=alt.Axis(tickCount=4, format="~s"),
        scale=alt.Scale(domain=[0, 1.12 * float(rows["value"].max())]),
    )
    base = alt.Chart(drawn).encode(x=x, y=y)
    bars = base.mark_bar().encode(
        color=alt.Color("colour:N", scale=None),
        tooltip=[alt.Tooltip("name:N", title=axes[0]), alt.Tooltip("value:Q", title=axes[1], format=form)],
    )
    said = base.mark_text(dy=-9, fontSize=13, fontWeight=600, color=style.text).encode(text=alt.Text("value:Q", format=form))
    subject, title, reading = captions
    table = rows.rename(columns={"name": axes[0], "value": axes[1]})
    return Drawing(subject, title, reading, finish((bars + said).properties(height=200), style, title), table)


def _swatches(signed: bool) -> alt.Legend:
    """A legend of coloured squares. An SVG gradient refers to the page's address, so it vanishes when the address changes."""
    values = [1.0, 0.5, 0.0, -0.5, -1.0] if signed else [1.0, 0.8, 0.6, 0.4, 0.2, 0.0]
    return alt.Legend(orient="right", type="symbol", symbolType="square", symbolSize=240, values=values, format=".1f", columns=1)


def _legend(names: list[str]) -> alt.Legend | None:
    return alt.Legend(symbolType="stroke", symbolStrokeWidth=3) if len(names) > 1 else None


def _named(names: list[str]) -> alt.Axis:
    """An axis whose labels are names. If there are many, every fourth has a label."""
    listed = ", ".join(f"'{name}'" for name in names)
    step = 1 if len(names) <= 20 else 4
    values = list(range(0, len(names), step))
    return alt.Axis(labelAngle=0, labelExpr=f"[{listed}][datum.value]", values=values)


def _made_unique(names: list[str]) -> list[str]:
    """The names, made unique: columns of a table must differ."""
    seen: dict[str, int] = {}
    out = []
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        out.append(name if seen[name] == 1 else f"{name} ({seen[name]})")
    return out
