"""The memory of one rank over one step. `pages.charts.beside` draws the peak of every rank."""

from __future__ import annotations

from typing import Any

import altair as alt
import numpy as np
import pandas as pd

from engine.tables import CATEGORIES, KV_CACHE
from pages.charts.drawing import Drawing, colours, finish, nothing
from pages.charts.look import MAX_BARS, Look, lane
from pages.charts.names import action, categories, doing, lanes
from pages.charts.thinning import extremes, stretches
from pages.charts.units import Unit, byte_unit, in_bytes, time_unit

_ORDER = (*CATEGORIES, KV_CACHE)  # of categories, from the bottom of a stack
_MOST_ACTIONS = 1_000  # drawn in the strip: two for each of its pixels
_HEADROOM = 1.12  # times the peak, which has its size written above it


def curve(memory_curve: pd.DataFrame, rank: int, style: Look) -> Drawing:
    """Stacked areas: the memory of one rank by category over a step. Below, on the same time axis, its actions."""
    say, named = style.say, categories(style.say)
    mine = memory_curve[memory_curve["rank"] == rank].sort_values("t_ns", kind="stable")
    moments = _highest_of_each_instant(mine)
    totals = moments.groupby("t_ns")["bytes"].sum()
    kept = totals.index[extremes(totals, MAX_BARS // len(_ORDER))]
    shown = moments[moments["t_ns"].isin(kept)]
    size, clock = byte_unit(totals.max()), time_unit(mine["t_ns"].max())
    rows = pd.DataFrame(
        {
            "time": shown["t_ns"] / clock.size,
            "category": shown["category"].map(named),
            "amount": shown["bytes"] / size.size,
            "order": shown["category"].map(_ORDER.index),
        }
    )
    areas = (
        alt.Chart(rows)
        .mark_area(interpolate="step-after")
        .encode(
            x=alt.X("time:Q", title=None, scale=alt.Scale(nice=False), axis=alt.Axis(labels=False, ticks=False)),
            y=alt.Y(
                "amount:Q",
                title=say("memory of rank {rank} ({unit})", rank=rank, unit=size.name),
                axis=alt.Axis(tickCount=5),
                scale=alt.Scale(domain=[0, float(totals.max() / size.size) * _HEADROOM]),
            ),
            color=alt.Color("category:N", scale=colours(style.category, list(rows["category"]), named)),
            order=alt.Order("order:Q"),
        )
    )
    top = totals.idxmax()
    then = doing(moments.loc[moments["t_ns"] == top, "action"].iloc[0], _chunks(moments["action"]), say)
    title = say("Rank {rank} peaks at {most} during {action}", rank=rank, most=in_bytes(totals.max()), action=then)
    summit = _peak_label(
        float(mine.loc[mine["t_ns"] == top, "t_ns"].iloc[0]) / clock.size,
        totals.max() / size.size,
        in_bytes(totals.max()),
        mine["t_ns"].max() / clock.size,
        style,
    )
    chart = alt.vconcat(
        alt.layer(areas, _band(clock, style), *summit, _pointer(shown, clock, style)).properties(height=236),
        alt.layer(_strip(mine, clock, style), _band(clock, style)).properties(height=22),
        spacing=4,
    ).resolve_scale(x="shared", color="independent")
    reading = say("Memory of the rank over one step, stacked by category. The strip below shows the action at each time.")
    if len(kept) < len(totals):
        reading = say.together(
            reading,
            say(
                "{drawn} of {count} moments are drawn: the highest and the lowest of each short interval; the strip "
                "shows its longest action.",
                count=f"{len(totals):,}",
                drawn=f"{len(kept):,}",
            ),
        )
    return Drawing(
        subject=say("Memory over one step"),
        title=title,
        reading=reading,
        spec=finish(chart, style, title, {"marked": nothing("t_ns", "end_ns")}),
        table=_pivoted(mine, ["t_ns", "action"]),
    )


def _chunks(actions: pd.Series[str]) -> int:
    """The number of chunks that a rank runs forward."""
    return actions.str.extract(r"F chunk (\d+)", expand=False).nunique()


def marks(memory_curve: pd.DataFrame, rank: int, doing: str) -> dict[str, list[dict[str, int]]]:
    """The interval of the action `doing`, as the table writes it, as rows to point at. Empty if the table has no such action."""
    mine = memory_curve.loc[memory_curve["rank"] == rank, ["t_ns", "action"]].sort_values("t_ns", kind="stable")
    first = mine.loc[mine["action"].ne(mine["action"].shift())]
    ends = first["t_ns"].shift(-1, fill_value=mine["t_ns"].max())
    same = first["action"] == doing
    return {"marked": [{"t_ns": a, "end_ns": b} for a, b in zip(first.loc[same, "t_ns"], ends[same], strict=True)]}


def _band(clock: Unit, style: Look) -> Any:
    """A band over the interval that the page points at. Its data set is empty until then."""
    return (
        alt.Chart(alt.NamedData(name="marked"))
        .transform_filter("isValid(datum.t_ns)")
        .transform_calculate(time=f"datum.t_ns / {clock.size}", end=f"datum.end_ns / {clock.size}")
        .mark_rect(filled=False, stroke=style.text, strokeWidth=3, tooltip=None, aria=False)
        .encode(x=alt.X("time:Q"), x2="end:Q")
    )


def _peak_label(time: float, amount: float, said: str, end: float, style: Look) -> list[Any]:
    """A mark and a text at the peak."""
    at = pd.DataFrame({"time": [time], "amount": [amount], "said": [style.say("peak {size}", size=said)]})
    base = alt.Chart(at).encode(x="time:Q", y="amount:Q")
    beside: dict[str, Any] = {"align": "right", "dx": -8} if time > end / 2 else {"align": "left", "dx": 8}
    return [
        base.mark_point(shape="triangle-down", filled=True, size=90, color=style.text, yOffset=-7, tooltip=None),
        base.mark_text(dy=-8, fontSize=12, fontWeight=600, color=style.text, tooltip=None, **beside).encode(text="said:N"),
    ]


def _pointer(mine: pd.DataFrame, clock: Unit, style: Look) -> Any:
    """A line that follows the pointer, with a tooltip of the exact bytes of every category."""
    say, named = style.say, categories(style.say)
    pivoted = _pivoted(mine, ["t_ns", "action"])
    pivoted["action"] = [action(text, say) for text in pivoted["action"]]
    pivoted["time"] = pivoted["t_ns"] / clock.size
    near = alt.selection_point(name="near", on="pointerover", nearest=True, empty=False, encodings=["x"], clear="pointerout")
    shown = [
        alt.Tooltip("action:N", title=say("action")),
        alt.Tooltip("t_ns:Q", title=say("ns from the step's start"), format=","),
    ]
    shown += [
        alt.Tooltip(f"{code}:Q", title=say("{category} (bytes)", category=name), format=",")
        for code, name in (*named.items(), ("total", say("total")))
        if code in pivoted
    ]
    return (
        alt.Chart(pivoted)
        .mark_rule(color=style.text, strokeWidth=1)
        .encode(x="time:Q", tooltip=shown, opacity=alt.when(near).then(alt.value(0.7)).otherwise(alt.value(0)))
        .add_params(near)
    )


def _strip(mine: pd.DataFrame, clock: Unit, style: Look) -> Any:
    """A bar for each action, from its first instant in the curve to the next. Of very many, the longest of each interval."""
    say, named = style.say, lanes(style.say)
    first = _longest(mine.loc[mine["action"].ne(mine["action"].shift()), ["t_ns", "action"]], int(mine["t_ns"].max()))
    words = first["action"].str.split()
    actions = pd.DataFrame(
        {
            "action": [action(text, say) for text in first["action"]],
            "start": first["t_ns"] / clock.size,
            "end": first["end_ns"] / clock.size,
            "began": first["began_ns"] / clock.size,
            "ended": first["ended_ns"] / clock.size,
            "what": words.str[0].map(lane).map(named),
            "label": words.map(lambda w: w[0] + w[-1] if "microbatch" in w else w[0]),
        }
    )
    actions = actions[actions["end"] > actions["start"]]
    bars = (
        alt.Chart(actions)
        .mark_bar(stroke=style.background, strokeWidth=0.6)
        .encode(
            x=alt.X("start:Q", title=say("time from the step's start ({unit})", unit=clock.name), scale=alt.Scale(nice=False)),
            x2="end:Q",
            color=alt.Color(
                "what:N", scale=colours(style.lane, list(actions["what"]), named), legend=alt.Legend(orient="bottom")
            ),
            tooltip=[
                alt.Tooltip("action:N", title=say("action")),
                alt.Tooltip("began:Q", title=say("start"), format=",.3f"),
                alt.Tooltip("ended:Q", title=say("end"), format=",.3f"),
            ],
        )
    )
    # Only in bars that are wide enough: about 7 pixels a letter, of the 500 pixels that the chart has at least.
    width = (actions["end"] - actions["start"]) / actions["end"].max() * 500
    roomy = actions[(width > 7 * actions["label"].str.len() + 4) & (actions["what"] != named[lane("send")])]
    labels = (
        alt.Chart(roomy.assign(middle=(roomy["start"] + roomy["end"]) / 2))
        .mark_text(fontSize=11, fontWeight=600, color=style.on_colour)
        .encode(x="middle:Q", text="label:N")
    )
    return bars + labels


def _highest_of_each_instant(mine: pd.DataFrame) -> pd.DataFrame:
    """The composition with most bytes at each instant. There are several at one instant if actions take no time."""
    repetition = mine.groupby(["t_ns", "category"]).cumcount()
    if not repetition.any():
        return mine
    totals = mine["bytes"].groupby([mine["t_ns"], repetition]).transform("sum")
    high = mine[totals == totals.groupby(mine["t_ns"]).transform("max")]
    return high[high.groupby(["t_ns", "category"]).cumcount() == 0]


def _longest(actions: pd.DataFrame, end: int) -> pd.DataFrame:
    """At most `_MOST_ACTIONS` intervals instead of `actions` (t_ns, action), which follow each other until `end`.

    An interval is from t_ns to end_ns. It has the name of its longest action, which was from began_ns to ended_ns.
    """
    found = actions.assign(end_ns=actions["t_ns"].shift(-1, fill_value=end))
    found = found.assign(began_ns=found["t_ns"], ended_ns=found["end_ns"])
    if len(found) <= _MOST_ACTIONS:
        return found
    begins = stretches(len(found), _MOST_ACTIONS)
    which = np.searchsorted(begins, np.arange(len(found)), side="right")
    longest = (found["end_ns"] - found["t_ns"]).groupby(which).idxmax()
    span = found.groupby(which).agg(t_ns=("t_ns", "first"), end_ns=("end_ns", "last"))
    return span.assign(**{name: found.loc[longest, name].to_numpy() for name in ("action", "began_ns", "ended_ns")})


def _pivoted(rows: pd.DataFrame, keys: list[str]) -> pd.DataFrame:
    """One row for each of `keys`, a column of bytes for each category, and their total."""
    pivoted = rows.pivot_table(index=keys, columns="category", values="bytes", aggfunc="sum", sort=True)
    pivoted = pivoted[[c for c in _ORDER if c in pivoted]]
    pivoted["total"] = pivoted.sum(axis=1)
    return pivoted.reset_index().rename_axis(columns=None)
