"""Serving a model: which layouts hold its parameters and its KV cache, for how many sequences, and how fast they are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import streamlit as st

from engine.planner.inference import cache, weights
from engine.planner.reserve import tensors_that_fit
from engine.predict.memory import SYMBOLS
from engine.spec import GenerateSpec, LayoutSpec, RunSpec, sentence
from engine.tables import KV_CACHE
from engine.terms import Term, total
from engine.topology import AXES
from pages.charts import formula
from pages.charts import plan as plans
from pages.charts import serving as charts
from pages.charts.drawing import Drawing
from pages.charts.look import View, look
from pages.charts.names import categories
from pages.charts.units import in_bytes, percent, short
from pages.charts.words import Words
from pages.plan import names, page_links
from pages.plan.found import served_by
from pages.plan.request import Request, Serving
from pages.shared import drawing
from pages.shared.cache import cached
from pages.shared.figures import Figure, as_html
from pages.shared.frame import inert, say, view
from pages.shared.service import Service
from pages.shared.subprocesses import run_in_worker
from pages.shared.unfolding import unfolding

_PROMPT = "Once upon a time"  # of the run in the link to the Lab; a byte is a token
_MOST = 100_000  # new tokens of a run
_SHARES = (0.25, 0.5, 1, 2, 4)  # of the requested length: other lengths that are drawn too
_TABLE_PX, _ROW_PX = 318, 35
# Meanings of symbols that differ from those in training.
_SYMBOLS = SYMBOLS | {
    "B": sentence("concurrent sequences of one replica"),
    "T": sentence("tokens of a sequence, prompt and answer"),
    "S": sentence("tokens of the source"),
}


@dataclass(frozen=True)
class Asked:
    """The request, and the layout that is shown."""

    request: Request
    serving: Serving
    row: int

    @property
    def table(self) -> pd.DataFrame:
        return served(self.request, self.serving)

    @property
    def length(self) -> int:
        return length_of(self.request, self.serving)

    @property
    def layout(self) -> LayoutSpec:
        r = self.table.iloc[self.row]
        return LayoutSpec(**{axis: int(r[axis]) for axis in AXES})

    @property
    def spec(self) -> RunSpec:
        """A spec that generates one sequence of the requested length, or of the longest that the model can read."""
        length = min(self.length, self.request.spec.seq)
        prompt = _PROMPT[: max(1, length - 1)]
        generate = GenerateSpec(prompt=prompt, new_tokens=min(max(1, length - len(prompt)), _MOST), skip_training=True)
        return RunSpec(model=self.request.spec, layout=self.layout, workload=self.request.workload, generate=generate)

    @property
    def each(self) -> int:
        """Concurrent sequences of one replica."""
        r = self.table.iloc[self.row]
        return -(-int(r["sequences"]) // int(r["dp"]))

    @property
    def reserve(self) -> int:
        """Bytes of the device that are kept free."""
        return int(self.table.iloc[self.row]["reserve_bytes"])


def length_of(request: Request, asked: Serving) -> int:
    return asked.length or request.spec.seq


@cached(64)
def served(request: Request, asked: Serving) -> pd.DataFrame:
    """The table of layouts of `engine.planner.serving`. Raises `RequestError`."""
    return run_in_worker(served_by, request, length_of(request, asked), asked.sequences or None)


def draw(service: Service, asked: Asked, choose: Any) -> None:
    """`choose(row)` is called with the number of a chosen layout, before the page is redrawn."""
    words, table = say(), asked.table
    fitting = int(table["fits"].sum())
    request = asked.request
    values = {"model": names.model(request, words), "ranks": f"{request.ranks:,}", "device": inert(request.hardware.name)}
    headline = (
        words("Serving {model} on {ranks} × {device}: it fits", **values)
        if fitting
        else words("Serving {model} on {ranks} × {device}: no layout fits", **values)
    )
    st.markdown(f"## {headline}", anchors=False)
    with st.container(horizontal=True, gap="small", vertical_alignment="bottom"):
        _chooser(asked, choose, words)
        if asked.request.spec.parts.objective == "causal":  # other families cannot generate
            page_links.to_lab(service, asked.spec, asked.request.hardware, words)
    drawing.heading(_place(asked, fitting, words), asked.layout.code)
    st.html(as_html(_figures(asked, words)))
    _fit(asked, words)
    with st.grid(columns=2, min_column_width=drawing.CHART_PX, gap="medium") as grid:
        with grid.cell():
            drawing.show(speeds(asked, view()), "serving-speeds", on_rank=lambda point: choose(point or 0))
        with grid.cell():
            drawing.show(stages(asked, view()), "serving-stages", below=lambda: _unfold(asked, words))
        with grid.cell():
            drawing.show(growing(asked, view()), "serving-growing")
        with grid.cell():
            _table(asked, fitting, choose, words)


def _chooser(asked: Asked, choose: Any, words: Words) -> None:
    table = asked.table

    def named(row: int) -> str:
        r = table.iloc[row]
        tokens = words("{tokens} tokens/s", tokens=short(float(r["tokens_per_second"]), words))
        return f"{row + 1} · {r['layout']} · {tokens if r['fits'] else words('does not fit')}"

    key = "plan/served"
    st.session_state[key] = asked.row
    st.selectbox(
        words("Layout"), list(range(len(table))), key=key, format_func=named, on_change=lambda: choose(st.session_state[key]),
        width=420,
    )  # fmt: skip


def _place(asked: Asked, fitting: int, words: Words) -> str:
    all_ = f"{len(asked.table):,}"
    if asked.row >= fitting:
        return words("One of the {count} layouts that do not fit", count=f"{len(asked.table) - fitting:,}")
    if not asked.row:
        return words("The fastest of the {count} layouts that fit, of {all}", count=f"{fitting:,}", all=all_)
    return words("Number {place} of the {count} layouts that fit, of {all}", place=asked.row + 1, count=f"{fitting:,}", all=all_)


def _figures(asked: Asked, words: Words) -> list[Figure]:
    r, device = asked.table.iloc[asked.row], asked.request.hardware
    tokens = words.plural("{count} token", "{count} tokens", asked.length)
    return [
        Figure(words("Parameters"), in_bytes(int(r["parameters_bytes"])), words("of the fullest rank")),
        Figure(words("KV cache"), in_bytes(int(r["cache_bytes"])), words("for a sequence of {tokens}", tokens=tokens)),
        Figure(
            words("Sequences"),
            f"{int(r['sequences']):,}",
            words("concurrent; {most} fit", most=f"{int(r['most_sequences']):,}"),
        ),
        Figure(
            words("Memory"),
            in_bytes(int(r["memory_bytes"])),
            words(
                "{share} of the device; {reserve} are kept free",
                share=percent(float(r["memory_bytes"]) / device.memory_bytes),
                reserve=in_bytes(int(r["reserve_bytes"])),
            ),
        ),
        Figure(words("Latency per token"), plans.seconds(float(r["token_s"]), words), words("between two tokens of a sequence")),
        Figure(words("Speed"), short(float(r["tokens_per_second"]), words), words("tokens a second, all sequences together")),
    ]


def _fit(asked: Asked, words: Words) -> None:
    """Why the layout does not fit, and what would make it fit."""
    r, have = asked.table.iloc[asked.row], asked.request.hardware.memory_bytes
    if bool(r["fits"]):
        return
    free = int(r["reserve_bytes"])
    values = {"need": in_bytes(int(r["parameters_bytes"])), "size": in_bytes(have), "reserve": in_bytes(free)}
    if int(r["parameters_bytes"]) + free > have:
        message = words(
            "The parameters of the fullest rank take {need} and the device has {size}, of which {reserve} are kept free: shard "
            "them over more ranks, by tp or pp.",
            **values,
        )
    elif int(r["most_sequences"]):
        message = words(
            "{sequences} concurrent sequences need {memory} on the fullest rank and the device has {size}, of which {reserve} "
            "are kept free: {most} fit.",
            sequences=f"{int(r['sequences']):,}",
            memory=in_bytes(int(r["memory_bytes"])),
            most=f"{int(r['most_sequences']):,}",
            **values,
        )
    else:
        message = words(
            "Parameters take {need} of the {size} of the device, {reserve} are kept free, and the KV cache of one sequence does "
            "not fit beside them: use shorter sequences, or shard the model over more ranks.",
            **values,
        )
    st.warning(message, icon=":material/memory_alt:")


# ----------------------------------------------------------------------------------------------------------- the charts


@cached(64)
def held(asked: Asked) -> tuple[tuple[int, int], ...]:
    """For each stage: a rank's bytes of parameters, and of the KV cache of one sequence of the requested length."""
    model, precision, layout = asked.request.spec, asked.request.workload.precision, asked.layout
    return tuple(
        (total(weights(model, layout, precision, stage)), total(cache(model, layout, precision, stage, 1, asked.length)))
        for stage in range(layout.pp)
    )


@st.cache_data(max_entries=32, show_spinner=False)
def speeds(asked: Asked, view: View) -> Drawing:
    return drawing.packed(charts.speeds(asked.table, asked.row, look(view)))


@st.cache_data(max_entries=32, show_spinner=False)
def stages(asked: Asked, view: View) -> Drawing:
    device = asked.request.hardware
    by_stage = [{"parameters": parameters, KV_CACHE: asked.each * one} for parameters, one in held(asked)]
    return drawing.packed(plans.stages(by_stage, device.memory_bytes, asked.reserve, device.name, look(view)))


@st.cache_data(max_entries=32, show_spinner=False)
def growing(asked: Asked, view: View) -> Drawing:
    device, precision, model = asked.request.hardware, asked.request.workload.precision, asked.request.spec
    lengths = sorted({max(1, round(share * asked.length)) for share in _SHARES})
    parameters = np.array([parameters for parameters, _ in held(asked)])
    layout = asked.layout
    room = tensors_that_fit(device, 1, layout.tp, layout.pp, False, asked.request.kept_free) - parameters
    ones = {
        n: np.array([total(cache(model, asked.layout, precision, stage, 1, n)) for stage in range(asked.layout.pp)])
        for n in lengths
    }
    most = {n: int((room // np.maximum(1, one)).min()) for n, one in ones.items()}
    numbers = sorted({*charts.batches(max(most.values())), asked.each})
    rows = [(n, count, int((parameters + count * one).max())) for n, one in ones.items() for count in numbers]
    return drawing.packed(
        charts.growing(
            pd.DataFrame(rows, columns=["length", "sequences", "bytes"]),
            pd.DataFrame([(n, count) for n, count in most.items() if count > 0], columns=["length", "sequences"]),
            int(parameters.max()),
            (asked.length, asked.each),
            device.memory_bytes,
            asked.reserve,
            device.name,
            look(view),
        )
    )


def _unfold(asked: Asked, words: Words) -> None:
    """The formulas of the fullest stage, with their numbers."""
    of_stages = [parameters + asked.each * one for parameters, one in held(asked)]
    stage = int(np.argmax(of_stages))
    label = words("The formula for stage {stage}: {size}", stage=stage, size=in_bytes(of_stages[stage]))
    with unfolding(label, "unfold-serving", icon=":material/function:", type="compact") as unfolded:
        if not unfolded.open:
            return
        model, precision, layout = asked.request.spec, asked.request.workload.precision, asked.layout
        terms: dict[str, tuple[Term, ...]] = {
            "parameters": weights(model, layout, precision, stage),
            KV_CACHE: cache(model, layout, precision, stage, asked.each, asked.length),
        }
        style = look(view())
        st.html(formula.unfolded(terms, categories(words), None, style))
        st.html(formula.glossary([term for part in terms.values() for term in part], _SYMBOLS, style))


# ------------------------------------------------------------------------------------------------------------ the table


def _table(asked: Asked, fitting: int, choose: Any, words: Words) -> None:
    table = asked.table
    title = (
        words("{count} of {all} fit; select a row to see it", count=fitting, all=len(table))
        if fitting
        else words("None of {all} fits; select a row to see it", all=len(table))
    )
    drawing.heading(words("All layouts"), title)
    number, text = st.column_config.NumberColumn, st.column_config.TextColumn
    shown = pd.DataFrame(
        {
            "layout": table["layout"],
            "parameters": table["parameters_bytes"] / 2**30,
            "cache": table["cache_bytes"] / 2**30,
            "most": table["most_sequences"],
            "memory": table["memory_bytes"] / 2**30,
            "token": 1e3 * table["token_s"],
            "speed": table["tokens_per_second"].round(),
            "fits": ["✓" if fits else "–" for fits in table["fits"]],
        }
    )

    def picked() -> None:
        chosen = st.session_state["plan-serving-table"]["selection"]["rows"]
        choose(chosen[0] if chosen else 0)

    st.dataframe(
        shown,
        hide_index=True,
        width="stretch",
        height=min(_TABLE_PX, _ROW_PX * (len(table) + 1) + 3),
        column_config={
            "layout": text(words("layout"), width=112),
            "parameters": number(words("parameters (GiB)"), format="%.1f"),
            "cache": number(words("cache (GiB)"), format="%.3f", help=words("Of keys and values of one sequence.")),
            "most": number(
                words("sequences"), format="localized", help=words("Number of concurrent sequences that fit, on all replicas.")
            ),
            "memory": number("GiB", format="%.1f", help=words("Memory of the fullest device.")),
            "token": number(words("a token (ms)"), format="%.1f"),
            "speed": number(words("tokens/s"), format="localized"),
            "fits": text(words("fits"), width=44),
        },
        key="plan-serving-table",
        on_select=picked,
        selection_mode="single-row",
        alt=words("All layouts"),
    )
    st.download_button(
        words("All {count} layouts as CSV", count=f"{len(table):,}"),
        data=lambda: table.to_csv(index=False).encode(),
        file_name="shardscope-serving.csv",
        mime="text/csv",
        icon=":material/download:",
        on_click="ignore",
    )
    st.caption(
        words(
            "For each token, every stage reads its parameters and the KV cache of its sequences, or computes, "
            "whichever takes longer; tp adds two all-reduces per layer. Activations are left out: they are those of "
            "one token."
        )
    )
