"""How many tokens each expert and each rank got: a model with experts, measured."""

from __future__ import annotations

import altair as alt
import pandas as pd

from pages.charts.drawing import Drawing, finish
from pages.charts.look import MAX_BARS, Look
from pages.charts.thinning import extremes
from pages.charts.units import significant

_WRITTEN_UP_TO = 16  # experts; cells of more are too narrow for numbers
_MOST_SHARE = 3.0  # a cell with this many times its share, or more, has the darkest colour


def by_expert(loads: pd.DataFrame, style: Look) -> Drawing:
    """A cell for each expert of each layer in the last step, as a multiple of an even share. `loads`: a table "expert_load"."""
    say, last = style.say, int(loads["step"].max())
    rows = loads[loads["step"] == last].groupby(["layer", "expert"], as_index=False)["tokens"].sum()
    rows["share"] = rows["tokens"] / rows.groupby("layer")["tokens"].transform("mean")
    rows = rows.assign(text=[f"{share:.1f}" for share in rows["share"]])
    busiest = rows.loc[rows["share"].idxmax()]
    values = {"expert": int(busiest["expert"]), "layer": int(busiest["layer"]), "share": significant(busiest["share"])}
    if (rows["share"] == 1).all():
        title = say("Every expert got the same number of tokens")
    else:
        title = say("Expert {expert} of layer {layer} got {share} times an even share", **values)
    layers = sorted(set(rows["layer"]))
    x = alt.X("expert:O", title=say("expert"), axis=alt.Axis(labelAngle=0, labelOverlap=True), scale=alt.Scale(paddingInner=0.02))
    y = alt.Y("layer:O", title=say("layer"), sort=layers, scale=alt.Scale(paddingInner=0.05))
    shade = alt.Scale(domain=[0, _MOST_SHARE], range=[style.faint, style.blue], interpolate="rgb", clamp=True)
    cells = (
        alt.Chart(rows)
        .mark_rect()
        .encode(
            x=x,
            y=y,
            color=alt.Color("share:Q", scale=shade, legend=None),
            tooltip=[
                alt.Tooltip("layer:O", title=say("layer")),
                alt.Tooltip("expert:O", title=say("expert")),
                alt.Tooltip("tokens:Q", title=say("tokens"), format=","),
                alt.Tooltip("share:Q", title=say("times an even share"), format=".2f"),
            ],
        )
    )
    drawn = [cells]
    if rows["expert"].nunique() <= _WRITTEN_UP_TO:
        dense = rows["share"] > 0.6 * _MOST_SHARE
        for ink, some in ((style.on_colour, rows[dense]), (style.text, rows[~dense])):
            words = alt.Chart(some).mark_text(tooltip=None, aria=False, color=ink)
            drawn.append(words.encode(x=x, y=y, text="text:N"))
    return Drawing(
        subject=say("Load of experts"),
        title=title,
        reading=say(
            "Tokens that each expert got in step {step}, from all ranks, as a multiple of an even share. The router learns whom "
            "it sends them to; with more experts of a token than one, a token counts for each.",
            step=last,
        ),
        spec=finish(alt.layer(*drawn).properties(height=max(80, 30 * len(layers))), style, title),
        table=rows.drop(columns="text"),
    )


def by_step(loads: pd.DataFrame, style: Look) -> Drawing:
    """The load of the fullest rank over the mean of all, step by step.

    In each layer the ranks wait for the one with the most tokens. So the most of each layer, added up, is held against the mean.
    """
    say = style.say
    totals = loads.groupby(["step", "layer", "rank"], as_index=False)["tokens"].sum()
    layers = totals.groupby(["step", "layer"])["tokens"].agg(["max", "mean"])
    steps = layers.groupby("step").sum()
    rows = pd.DataFrame({"step": steps.index, "times": (steps["max"] / steps["mean"]).to_numpy()})
    last, axis = float(rows["times"].iloc[-1]), alt.Axis(tickMinStep=1, format="d")
    if last == 1:
        title = say("No rank waits for another’s experts")
    else:
        title = say("The fullest rank computes {times} times an even share", times=significant(last))
    x = alt.X("step:Q", title=say("step"), axis=axis, scale=alt.Scale(nice=False))
    line = (
        alt.Chart(rows.iloc[extremes(rows["times"], MAX_BARS)])
        .mark_line(color=style.blue, strokeWidth=2.5, point=alt.OverlayMarkDef(color=style.blue, size=36))
        .encode(
            x=x,
            y=alt.Y("times:Q", title=say("times an even share"), scale=alt.Scale(domainMin=1, zero=False)),
            tooltip=[
                alt.Tooltip("step:Q", title=say("step")),
                alt.Tooltip("times:Q", title=say("times an even share"), format=".2f"),
            ],
        )
    )
    return Drawing(
        subject=say("Load of ranks"),
        title=title,
        reading=say(
            "In each layer all ranks wait for the one whose experts got the most tokens. Drawn is the sum of these over the "
            "layers, as a multiple of the mean of all ranks: at 1 nobody waits."
        ),
        spec=finish(line.properties(height=200), style, title),
        table=rows,
    )
