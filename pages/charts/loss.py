"""The loss of a run, step by step."""

from __future__ import annotations

from collections.abc import Sequence

import altair as alt
import pandas as pd

from pages.charts.drawing import Drawing, finish, records
from pages.charts.look import MAX_BARS, Look
from pages.charts.thinning import extremes

_POINTS_UP_TO = 100  # steps; points of more would overlap
_WHOLE = alt.Axis(tickMinStep=1, format="d")


def growing(losses: Sequence[float], steps: int, style: Look) -> Drawing:
    """The loss of the steps so far, of `steps` that the run will take. Only data change while it runs, so the chart stays."""
    say, rows = style.say, pd.DataFrame({"step": range(1, len(losses) + 1), "loss": losses})
    drawn = rows.iloc[extremes(rows["loss"], MAX_BARS)]
    title = say("Waiting for the first step")
    if len(losses):
        title = say("Step {step} of {steps}: the loss is {loss}", step=len(losses), steps=steps, loss=f"{losses[-1]:.3f}")
    line = (
        alt.Chart(alt.NamedData("losses"))
        .mark_line(color=style.blue, strokeWidth=2.5, point=alt.OverlayMarkDef(color=style.blue, size=20))
        .encode(
            x=alt.X("step:Q", title=say("step"), axis=_WHOLE, scale=alt.Scale(domain=[1, max(2, steps)], nice=False)),
            y=alt.Y("loss:Q", title=say("loss (nats per token)"), scale=alt.Scale(zero=False), axis=alt.Axis(tickCount=5)),
        )
        .properties(height=200)
    )
    spec = finish(line, style, say("The loss of the run in progress"), {"losses": records(drawn)})
    return Drawing(say("Training"), title, "", spec, rows)


def loss(steps: pd.DataFrame, style: Look) -> Drawing:
    """The loss after each step."""
    say = style.say
    rows = steps[["step", "loss", "grad_norm", "step_ns", "tokens"]].reset_index(drop=True)
    drawn = rows.iloc[extremes(rows["loss"], MAX_BARS)]
    points = alt.OverlayMarkDef(color=style.blue, size=36)
    line = (
        alt.Chart(drawn.assign(ms=drawn["step_ns"] / 1e6))
        .mark_line(color=style.blue, strokeWidth=2.5, point=points if len(rows) <= _POINTS_UP_TO else False)
        .encode(
            x=alt.X("step:Q", title=say("step"), axis=_WHOLE, scale=alt.Scale(nice=False)),
            y=alt.Y("loss:Q", title=say("loss (nats per token)"), scale=alt.Scale(zero=False), axis=alt.Axis(tickCount=5)),
            tooltip=[
                alt.Tooltip("step:Q", title=say("step")),
                alt.Tooltip("loss:Q", title=say("loss"), format=".4f"),
                alt.Tooltip("grad_norm:Q", title=say("gradient norm"), format=".4f"),
                alt.Tooltip("ms:Q", title=say("step time (ms)"), format=",.1f"),
                alt.Tooltip("tokens:Q", title=say("tokens"), format=","),
            ],
        )
        .properties(height=236)
    )
    first, last = rows["loss"].iloc[0], rows["loss"].iloc[-1]
    ends = {"first": f"{first:.3f}", "last": f"{last:.3f}"}
    if last < first:
        title = say.plural(
            "The loss fell from {first} to {last} in {count} step",
            "The loss fell from {first} to {last} in {count} steps",
            len(rows),
            **ends,
        )
    else:
        title = say.plural(
            "The loss did not fall: it went from {first} to {last} in {count} step",
            "The loss did not fall: it went from {first} to {last} in {count} steps",
            len(rows),
            **ends,
        )
    reading = say("One point a step: the mean over all replicas and microbatches; guessing among 256 bytes costs ln 256 = 5.545.")
    if len(drawn) < len(rows):
        reading = say.together(
            reading,
            say(
                "{drawn} of {count} steps are drawn: the highest and the lowest of each short interval.",
                count=f"{len(rows):,}",
                drawn=f"{len(drawn):,}",
            ),
        )
    return Drawing(say("Training"), title, reading, finish(line, style, title), rows)
