"""Charts of serving: layouts by latency and throughput of tokens, and memory by number of sequences."""

from __future__ import annotations

import altair as alt
import pandas as pd

from pages.charts.drawing import Drawing, colours, finish
from pages.charts.look import Look
from pages.charts.plan import band_meaning, capacity_line, log_axis
from pages.charts.roles import CHOSEN
from pages.charts.units import byte_unit, in_bytes, percent, short, significant
from pages.charts.words import Words

_HEADROOM = 1.5  # times the device's memory: where the axis ends


def speeds(layouts: pd.DataFrame, chosen: int, style: Look) -> Drawing:
    """Layouts as points: time between two tokens of a sequence against tokens a second of all. `layouts`: table of `serving`."""
    say = style.say
    fits, misfit = say("fits"), say("does not fit")
    rows = layouts[["layout", "sequences", "tokens_per_second"]].assign(
        row=range(len(layouts)),
        ms=1e3 * layouts["token_s"],
        what=[fits if fitting else misfit for fitting in layouts["fits"]],
        memory=[in_bytes(size) for size in layouts["memory_bytes"]],
    )
    x = alt.X("ms:Q", title=say("latency per token of a sequence (ms)"), **log_axis(rows["ms"]))
    y = alt.Y("tokens_per_second:Q", title=say("tokens a second, all sequences together"), **log_axis(rows["tokens_per_second"]))
    kinds = [fits, misfit]
    points = (
        alt.Chart(rows)
        .mark_point(filled=True, strokeWidth=0.5, size=90, opacity=0.85)
        .encode(
            x=x,
            y=y,
            color=alt.Color("what:N", scale=alt.Scale(domain=kinds, range=[style.blue, style.grey])),
            shape=alt.Shape("what:N", scale=alt.Scale(domain=kinds, range=["circle", "cross"])),
            tooltip=[
                alt.Tooltip("layout:N", title=say("layout")),
                alt.Tooltip("sequences:Q", title=say("concurrent sequences"), format=","),
                alt.Tooltip("memory:N", title=say("memory")),
                alt.Tooltip("ms:Q", title=say("a token (ms)"), format=",.1f"),
                alt.Tooltip("tokens_per_second:Q", title=say("tokens/s"), format=",.0f"),
            ],
        )
        .add_params(alt.selection_point(name=CHOSEN, fields=["row"], on="click", toggle=False))
    )
    here = alt.Chart(rows[rows["row"] == chosen]).mark_point(size=360, strokeWidth=2.5, color=style.text, filled=False)
    title = _speeds_title(layouts, say)
    return Drawing(
        subject=say("Throughput and latency"),
        title=title,
        reading=say(
            "Each point is a layout; higher is more throughput, further left is lower latency per token. Click a "
            "point to see that layout."
        ),
        spec=finish(alt.layer(points, here.encode(x=x, y=y)).properties(height=260), style, title),
        table=layouts,
    )


def _speeds_title(layouts: pd.DataFrame, say: Words) -> str:
    fitting = layouts[layouts["fits"]]
    if not len(fitting):
        return say("None of the {count} layouts fits", count=f"{len(layouts):,}")
    return say(
        "Up to {tokens} tokens a second; the lowest latency per token is {least} ms",
        tokens=short(float(fitting["tokens_per_second"].max()), say),
        least=significant(1e3 * float(fitting["token_s"].min())),
    )


def growing(
    held: pd.DataFrame,
    most: pd.DataFrame,
    parameters: int,
    here: tuple[int, int],
    capacity: int,
    reserve: int,
    device: str,
    style: Look,
) -> Drawing:
    """Memory of the fullest rank by number of concurrent sequences, a line for each sequence length.

    `held`: length, sequences (of one replica), bytes. `most`: length, sequences: how many fit, for each length of which at least
    one fits. `parameters`: bytes of parameters on the stage with most. `here`: the requested length and number of sequences.
    `reserve`: bytes of the capacity that are kept free.
    """
    say, unit = style.say, byte_unit(capacity)
    lengths = sorted(set(held["length"]))
    named = {length: _tokens(length, say) for length in lengths}
    top = max(_HEADROOM * capacity, 1.2 * parameters)
    seen = held[held["bytes"] <= top]
    rows = seen.assign(amount=seen["bytes"] / unit.size, name=seen["length"].map(named))
    tones = {length: style.stage(i, len(lengths)) for i, length in enumerate(lengths)}
    x = alt.X(
        "sequences:Q",
        title=say("concurrent sequences of one replica"),
        scale=alt.Scale(type="log", nice=False),
        axis=alt.Axis(format=",~g", tickCount=8),
    )
    y = alt.Y(
        "amount:Q",
        title=say("memory of the fullest rank ({unit})", unit=unit.name),
        scale=alt.Scale(domain=[0, top / unit.size], nice=False),
    )
    line = alt.Chart(rows).encode(
        x=x,
        y=y,
        color=alt.Color("name:N", scale=colours(tones, lengths, named), sort=list(named.values())),
        tooltip=[
            alt.Tooltip("name:N", title=say("a sequence of")),
            alt.Tooltip("sequences:Q", title=say("concurrent sequences"), format=","),
            alt.Tooltip("amount:Q", title=say("memory ({unit})", unit=unit.name), format=",.1f"),
        ],
    )
    base = alt.Chart(pd.DataFrame({"amount": [parameters / unit.size], "text": [say("parameters")]}))
    length, sequences = here
    now = rows[(rows["length"] == length) & (rows["sequences"] == sequences)]
    below = 9 if parameters <= capacity else -9  # the device's name is above its line
    layers = [
        base.mark_rule(color=style.blue, strokeWidth=1.5).encode(y="amount:Q"),
        base.mark_text(align="right", dy=below, fontSize=12, fontWeight=600, color=style.blue).encode(
            y="amount:Q", x=alt.value("width"), text="text:N"
        ),
        line.mark_line(strokeWidth=2.2),
        line.mark_point(filled=True, size=26),
        *capacity_line(capacity, reserve, unit, device, style),
        alt.Chart(now).mark_point(size=300, strokeWidth=2.5, color=style.text, filled=False).encode(x=x, y=y),
    ]
    title = _growing_title(dict(zip(most["length"], most["sequences"], strict=True)), length, parameters, capacity, say)
    return Drawing(
        subject=say("Memory by number of sequences"),
        title=title,
        reading=say.together(
            say(
                "The blue line is the memory of the parameters. Above it is the KV cache: each sequence has its own, and "
                "it grows with each token. Where a line reaches the grey band, no more sequences fit."
            ),
            band_meaning(reserve, say),
        ),
        spec=finish(alt.layer(*layers).properties(height=260), style, title),
        table=held.merge(most.rename(columns={"sequences": "most_sequences"}), on="length", how="left"),
    )


def _growing_title(most: dict[int, int], length: int, parameters: int, capacity: int, say: Words) -> str:
    if parameters > capacity:
        return say("The parameters alone take {share} of the device", share=percent(parameters / capacity))
    return say.plural(
        "A replica fits {count} sequence of {tokens}",
        "A replica fits {count} concurrent sequences of {tokens}",
        most.get(length, 0),
        tokens=_tokens(length, say),
    )


def _tokens(length: int, say: Words) -> str:
    return say.plural("{count} token", "{count} tokens", length)


def batches(most: int) -> list[int]:
    """Numbers of sequences at which lines have points: 1, 2, 3, 4, 6, 8, 12, … to well above `most`."""
    found, power = [1], 2
    while power <= 4 * max(1, most):
        found += [power, power * 3 // 2]
        power *= 2
    return found
