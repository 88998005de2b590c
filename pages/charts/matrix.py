"""Bytes from sender to receiver in one step: a matrix of ranks, or of nodes or stages if there are many ranks."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from typing import Any, NamedTuple

import altair as alt
import numpy as np
import pandas as pd

from engine.tables import members
from engine.topology import AXES_AS_WRITTEN, EP, Mesh
from pages.charts.drawing import Drawing, Rows, colours, finish, nothing, rank_chooser
from pages.charts.look import Look, Theme
from pages.charts.roles import Roles
from pages.charts.traffic import Measure
from pages.charts.units import byte_unit, in_bytes, percent, significant

MOST_ROWS = 54  # 54 × 54 cells are fewer than `look.MAX_BARS`; 55 × 55 are more
MOST_RANKS = 64  # that have a row each: of 64 × 64 cells most are empty
NODE = 8  # ranks of one machine, usually
_WRITTEN_UP_TO = 16  # rows; cells of more are too small for numbers
# Above this opacity, a cell's number is written in the colour of the background.
_DENSE: dict[Theme, float] = {"light": 0.8, "dark": 0.62}


_CORNERS = ("to", "x2", "from", "y2")  # of the cell that the page points at


class MatrixBlock(NamedTuple):
    """Ranks `first` … `last` that share a row and a column."""

    name: str
    first: int
    last: int


def blocks(mesh: Mesh, style: Look) -> list[MatrixBlock]:
    """One block for each rank. If there are more than `MOST_RANKS`, one for each node of 8, each stage, or a few stages."""
    say, size = style.say, mesh.size
    if size <= MOST_RANKS:
        return [MatrixBlock(f"{rank}", rank, rank) for rank in range(size)]
    if size <= NODE * MOST_ROWS:
        return [MatrixBlock(f"{a}–{min(a + NODE, size) - 1}", a, min(a + NODE, size) - 1) for a in range(0, size, NODE)]
    width = mesh.stride("pp")
    together = -(-mesh.pp // MOST_ROWS)
    found = []
    for a in range(0, mesh.pp, together):
        b = min(a + together, mesh.pp) - 1
        name = say("stage {stage}", stage=a) if a == b else say("stages {first}–{last}", first=a, last=b)
        found.append(MatrixBlock(name, a * width, (b + 1) * width - 1))
    return found


def links(traffic: pd.DataFrame, measure: Measure) -> pd.DataFrame:
    """A row for each sender, receiver and axis: columns sender, receiver, axis, bytes, calls.

    A send goes to its receiver. A receive is the same message, so it is left out. The bytes of a collective go to the next rank
    of the group, and from the last to the first: in a ring, all wire bytes of a rank take this link (Patarasuk and Yuan 2009).
    Payload is counted on the same link, though its content reaches the whole group.
    """
    rows = traffic[(traffic["collective"] != "recv") & (traffic[f"{measure}_bytes"] > 0)]
    receivers = [_next(rank, members(group)) for rank, group in zip(rows["rank"], rows["group"], strict=True)]
    sent = pd.DataFrame(
        {
            "sender": rows["rank"].to_numpy(),
            "receiver": np.array(receivers, dtype="int64"),
            "axis": rows["axis"].to_numpy(),
            "bytes": rows[f"{measure}_bytes"].to_numpy(),
            "calls": rows["calls"].to_numpy(),
        }
    )
    return sent.groupby(["sender", "receiver", "axis"], as_index=False)[["bytes", "calls"]].sum()


def matrix(traffic: pd.DataFrame, mesh: Mesh, measure: Measure, style: Look, roles: Roles | None = None) -> Drawing:
    """A cell for each sender (row) and receiver (column). Its colour is the axis, its opacity the bytes.

    With `roles`, the row and the column of the chosen rank are framed.
    """
    say = style.say
    rows = blocks(mesh, style)
    sent = links(traffic, measure)
    cells = _cells(sent, rows, style)
    title = _finding(sent, measure, style)
    pixels = max(17, min(44, 620 // len(rows))) * len(rows) if len(rows) <= MOST_ROWS else 11 * len(rows)
    chart = _chart(cells, rows, mesh, style, roles).properties(height=max(180, min(pixels, 640)))
    rule = {
        "wire": say(
            "Collectives are counted as ring algorithms: each rank sends to the next rank of its group, the last "
            "rank to the first."
        ),
        "payload": say(
            "The payload of a collective is counted on the link to the next rank of the group, as in a ring "
            "algorithm; a message is counted once, at its sender."
        ),
    }[measure]
    each = say("a rank")
    if len(rows) < mesh.size:
        each = say("{count} neighbouring ranks", count=f"{rows[0].last - rows[0].first + 1:,}")
    reading = say("Each row and column is {each}; a cell is what the row sends to the column in one step.", each=each)
    if len(rows) < mesh.size:
        reading = say.together(reading, say("The colour shows the axis that carries most of these bytes."))
    if len(cells) and len(rows) <= _WRITTEN_UP_TO:
        reading = say.together(reading, say("The numbers are {unit}.", unit=cells["unit"].iloc[0]))
    return Drawing(
        subject=say("Traffic matrix"),
        title=title,
        reading=say.together(reading, rule),
        spec=finish(chart, style, title, {"marked": nothing(*_CORNERS)}),
        table=sent.rename(columns={"bytes": f"{measure}_bytes"}),
    )


def marks(rank: int, collective: str, group: Sequence[int], mesh: Mesh, style: Look) -> dict[str, Rows]:
    """The cell that counts a rank's call, as rows to point at. A receive is counted in the cell of its send."""
    neighbour = _next(rank, group)
    sender, receiver = (neighbour, rank) if collective == "recv" else (rank, neighbour)
    firsts = [block.first for block in blocks(mesh, style)]
    row, column = (bisect_right(firsts, rank) - 1 for rank in (sender, receiver))
    return {"marked": [dict(zip(_CORNERS, (column, column + 1, row, row + 1), strict=True))]}


def _next(rank: int, group: Sequence[int]) -> int:
    """The rank after `rank` in a group. After the last comes the first."""
    return group[(group.index(rank) + 1) % len(group)]


def _cells(sent: pd.DataFrame, rows: list[MatrixBlock], style: Look) -> pd.DataFrame:
    """A row for each cell that is not empty. Its `axis` is the one with most of its bytes."""
    firsts = np.array([block.first for block in rows])
    by = {
        "from": np.searchsorted(firsts, sent["sender"], side="right") - 1,
        "to": np.searchsorted(firsts, sent["receiver"], side="right") - 1,
    }
    wide = sent.assign(**by).pivot_table(index=["from", "to"], columns="axis", values="bytes", aggfunc="sum", fill_value=0)
    wide = wide.reindex(columns=[*AXES_AS_WRITTEN, EP], fill_value=0).astype("int64")
    cells = wide.reset_index().rename_axis(columns=None)
    cells["bytes"] = wide.sum(axis=1).to_numpy()
    cells["axis"] = wide.idxmax(axis=1).to_numpy() if len(wide) else pd.Series(dtype="str")
    cells["sender"] = [rows[i].name for i in cells["from"]]
    cells["receiver"] = [rows[i].name for i in cells["to"]]
    cells["rank"] = [rows[i].first for i in cells["from"]]  # the rank that a click on the cell chooses
    unit = byte_unit(cells["bytes"].max() if len(cells) else 0)
    cells["said"] = [significant(value / unit.size) for value in cells["bytes"]]
    cells["exactly"] = [in_bytes(value) for value in cells["bytes"]]
    # The square root, so that a hundredth of the largest amount still has a tenth of its opacity.
    strength = np.sqrt(cells["bytes"] / cells["bytes"].max()) if len(cells) else cells["bytes"]
    cells["strength"] = 0.18 + 0.82 * strength
    cells["unit"] = unit.name
    return cells


def _chart(cells: pd.DataFrame, rows: list[MatrixBlock], mesh: Mesh, style: Look, roles: Roles | None) -> Any:
    say, count = style.say, len(rows)
    names = ", ".join(f"'{block.name}'" for block in rows)
    each = max(1, -(-count // 32))  # labels that fit along the side
    ticks = [i + 0.5 for i in range(0, count, each)]
    named: dict[str, Any] = {"values": ticks, "labelExpr": f"[{names}][floor(datum.value)]", "grid": False}
    across = alt.Axis(**named, domain=False, ticks=False, labelAngle=0, orient="top")
    whose = say("rank") if count == mesh.size else say("ranks")
    domain = alt.Scale(domain=[0, count], nice=False)
    x = alt.X("to:Q", scale=domain, axis=across, title=say("to {whose}", whose=whose))
    y = alt.Y("from:Q", scale=alt.Scale(domain=[0, count], nice=False, reverse=True), title=say("from {whose}", whose=whose))
    y = y.axis(**named)
    tooltip = [alt.Tooltip("sender:N", title=say("from")), alt.Tooltip("receiver:N", title=say("to"))]
    tooltip.append(alt.Tooltip("exactly:N", title=say("in a step")))
    tooltip += [alt.Tooltip(f"{axis}:Q", title=say("{axis} (bytes)", axis=axis), format=",") for axis in AXES_AS_WRITTEN]

    layers = [
        alt.Chart(_squares(rows, mesh))
        .mark_rect(fill=style.faint, stroke=style.background, strokeWidth=2)
        .encode(x=x, x2="x2:Q", y=y, y2="y2:Q")
    ]
    ends = cells.assign(x2=cells["to"] + 1, y2=cells["from"] + 1)
    layers.append(
        alt.Chart(ends)
        .mark_rect(stroke=style.background, strokeWidth=1 if count > _WRITTEN_UP_TO else 2, cursor="pointer")
        .encode(
            x=x,
            x2="x2:Q",
            y=y,
            y2="y2:Q",
            color=alt.Color(
                "axis:N", scale=colours(style.axis, list(cells["axis"])), legend=alt.Legend(columns=len(AXES_AS_WRITTEN))
            ),
            fillOpacity=alt.FillOpacity("strength:Q", scale=None),
            tooltip=tooltip,
        )
        .add_params(rank_chooser())
    )
    if count <= _WRITTEN_UP_TO:
        dense = f"datum.strength > {_DENSE[style.theme]}"
        layers.append(
            alt.Chart(ends.assign(**{"to": ends["to"] + 0.5, "from": ends["from"] + 0.5}))
            .mark_text(fontSize=11, fontWeight=600, tooltip=None, cursor="pointer")
            .encode(
                x=x,
                y=y,
                text="said:N",
                color=alt.condition(dense, alt.value(style.on_colour), alt.value(style.text)),
            )
        )
    layers.append(_frame(x, y, style))
    if roles:
        layers.append(_frames(roles, rows, x, y, style))
    return alt.layer(*layers)


def _squares(rows: list[MatrixBlock], mesh: Mesh) -> pd.DataFrame:
    """Pale squares on the diagonal, behind the cells: the ranks of one stage."""
    width = mesh.stride("pp")
    starts = sorted({i for i, block in enumerate(rows) if block.first % width == 0})
    ends = [*starts[1:], len(rows)]
    return pd.DataFrame({"from": starts, "to": starts, "x2": ends, "y2": ends})


def _frames(roles: Roles, rows: list[MatrixBlock], x: Any, y: Any, style: Look) -> Any:
    """A frame around the row of the chosen rank, and one around its column."""
    at = next(i for i, block in enumerate(rows) if block.first <= roles.chosen <= block.last)
    frames = [(at, at + 1, 0, len(rows)), (0, len(rows), at, at + 1)]
    return (
        alt.Chart(pd.DataFrame(frames, columns=["from", "y2", "to", "x2"]))
        .mark_rect(filled=False, stroke=style.text, strokeWidth=2, tooltip=None, aria=False)
        .encode(x=x, x2="x2:Q", y=y, y2="y2:Q")
    )


def _frame(x: Any, y: Any, style: Look) -> Any:
    """A frame around the cell that the page points at."""
    return (
        alt.Chart(alt.NamedData(name="marked"))
        .transform_filter("isValid(datum.to)")
        .mark_rect(filled=False, stroke=style.text, strokeWidth=3.5, tooltip=None, aria=False)
        .encode(x=x, x2="x2:Q", y=y, y2="y2:Q")
    )


def _finding(sent: pd.DataFrame, measure: Measure, style: Look) -> str:
    say = style.say
    if not len(sent):
        return say("No communication between ranks")
    pairs = sent.groupby(["sender", "receiver", "axis"], as_index=False)["bytes"].sum()
    top = pairs.loc[pairs["bytes"].idxmax()]
    same = (pairs["bytes"].map(in_bytes) == in_bytes(top["bytes"])) & (pairs["axis"] == top["axis"])  # as they are written
    alike, share = int(same.sum()), float(pairs.loc[same, "bytes"].sum() / pairs["bytes"].sum())
    found = {"size": in_bytes(top["bytes"]), "axis": top["axis"], "share": percent(share)}
    if alike > 1:
        return say("The {count} busiest links carry {size} each along {axis}: {share} of all bytes", count=f"{alike:,}", **found)
    of = {"sender": top["sender"], "receiver": top["receiver"]}
    return say("The busiest link is {sender} → {receiver}: {size} along {axis}, {share} of all bytes", **of, **found)
