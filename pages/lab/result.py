"""The result of a saved run: a few numbers first, then the charts."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import streamlit as st

from engine import catalog, contract
from engine.launch.recording.client import with_ledgers
from engine.predict.traffic.loads import measured_loads
from engine.spec import RequestError, sentence
from engine.summary import workspace
from engine.tables import RunResult
from engine.topology import Mesh
from pages.charts import experts, generated, loss, matrix, memory, traffic
from pages.charts.drawing import Drawing
from pages.charts.look import Look, View, look
from pages.charts.names import columns, schedule
from pages.charts.roles import Roles, roles_of
from pages.charts.units import in_bytes
from pages.charts.words import Words
from pages.lab import prediction, timelines, walk
from pages.lab.events import Event, MicrobatchPath
from pages.lab.events import walk as events_of
from pages.lab.figures import figures, parity
from pages.shared import chosen, drawing, navigation
from pages.shared.beside import run_items, to_link, with_last_compared
from pages.shared.figures import as_html
from pages.shared.frame import inert, labelled, say, view
from pages.shared.pointing import pointed
from pages.shared.saved import by_run, load
from pages.shared.service import is_example

_RANK = "lab/rank"


def headline(result: RunResult, say: Words) -> str:
    model, layout = catalog.name_of(result.spec.model), result.spec.layout
    if layout.pp == 1:
        return say("Measured: {model} on {layout}", model=model, layout=layout.code)
    named = schedule(layout.schedule, say)
    return say("Measured: {model} on {layout}, {schedule}", model=model, layout=layout.code, schedule=named)


@st.fragment
def head(folder: Path) -> None:
    """What a run came to: its figures, parity, the loss and the text that it generated."""
    try:
        result = measured(folder)
    except RequestError as error:
        st.error(
            say()("This run cannot be shown: {error}.", error=inert(say().sentence(error.sentence))), icon=":material/error:"
        )
        return
    with st.container(horizontal=True, vertical_alignment="center", gap="small"):
        st.markdown(f"### {headline(result, say())}", anchors=False, width="content")
        beside = to_link(with_last_compared(run_items([folder.name])))
        navigation.link("compare", say()("Compare this"), "compare_arrows", beside)
    if is_example(folder):
        st.caption(say()("This run comes with Shardscope. Press **Run** at the left to make one on this machine."))
    st.html(as_html(figures(result, say())))
    _parity(result)
    if "loss_last" in result.summary:
        drawing.show(losses(folder, view()), "loss")
    _generated(result)


@st.fragment
def charts(folder: Path) -> None:
    """The charts of a run. Their controls redraw only this part; choosing a rank redraws the page."""
    chosen.redraw_all()
    try:
        result = measured(folder)
    except RequestError:  # which the head tells
        return
    event = _walked(folder, result)
    if routed := _routed(result):
        st.caption(routed)
    _memory(folder, result, event)
    _traffic(folder, result, event)
    if "expert_load" in result.tables:
        with st.grid(columns=2, min_column_width=drawing.CHART_PX, gap="medium"):
            drawing.show(expert_loads(folder, view()), "expert-load")
            drawing.show(rank_loads(folder, view()), "rank-load")
    _timeline(folder, result, event)
    if _walkable(result):
        walk.draw(result.spec, partial(events, folder), in_units=False)
    _rest(folder, result)


def measured(folder: Path) -> RunResult:
    """The saved run. Raises `RequestError`, also for a dry run and a prediction, which have no processes and no times."""
    result = load(folder)
    if (source := contract.source(result)) == "formula":
        raise RequestError(sentence("{name} is a prediction: Compare shows it beside others", name=folder.name))
    if source != "measured":
        raise RequestError(sentence("{name} is a dry run: Compare shows it beside others", name=folder.name))
    return result


def _parity(result: RunResult) -> None:
    found = parity(result, say())
    if found is None:
        st.badge(say()("Not checked against the unsharded model"), icon=":material/help:", color="gray")
        return
    if found.good:
        st.badge(found.sentence, icon=":material/check:", color="green")
    else:
        st.badge(found.sentence, icon=":material/error:", color="red")
    table = result.tables["parity"].drop(columns="source")
    label = say().plural("All {count} parameters", "All {count} parameters", len(table))
    with st.expander(label, key="table-parity", on_change="rerun", type="compact") as numbers:
        if numbers.open:
            called = columns(say())
            shown: dict[str, Any] = {"parameter": called["parameter"]}
            shown |= {name: st.column_config.NumberColumn(called[name], format="%.2e") for name in ("max_abs", "max_rel")}
            st.dataframe(table, hide_index=True, column_config=shown, alt=say()("Gradient differences"))


def _generated(result: RunResult) -> None:
    """The text that the run generated. All ranks together are one model."""
    if found := result.summary.get("generated"):
        count = len(found["tokens"])
        after = say().plural("{count} token after the prompt", "{count} tokens after the prompt", count)
        drawing.heading(say()("Generated"), after)
        st.html(f"<style>{generated.STYLE}</style>{generated.as_html(found['prompt'], found['text'], say())}")


def _memory(folder: Path, result: RunResult, event: Event | None) -> None:
    """The memory charts. The curve is that of the chosen rank, or else of the rank with the highest peak."""
    ranks, rank = range(result.spec.layout.ranks), chosen.rank(_mesh(result))
    shown = int(result.summary["peak_rank"]) if rank is None else rank

    def pick_rank() -> None:
        st.session_state[_RANK] = shown
        named = {rank: say()("rank {rank}", rank=rank) for rank in ranks}
        st.selectbox(
            say()("Rank"),
            ranks,
            key=labelled(_RANK),
            format_func=named.__getitem__,
            on_change=lambda: chosen.set_rank(st.session_state[_RANK]),
            label_visibility="collapsed",
            width=130,
        )

    with st.grid(columns=2, min_column_width=drawing.CHART_PX, gap="medium") as grid:
        with grid.cell():
            prediction.memory_card(result.spec, result, "measured")
            _workspace(result)
        drawn = curve(folder, shown, view())
        if event is not None and event.rank == shown:
            drawn = pointed(drawn, memory.marks(result.tables["memory_curve"], event.rank, str(event.action)))
        drawing.show(drawn, "curve", pick_rank)


def _workspace(result: RunResult) -> None:
    """The kernel workspace, which depends on the machine and is in no bar."""
    if found := workspace(result.summary.get("allocator", [])):
        st.caption(
            say()(
                "Kernel workspace comes on top: up to {size} within single operations. It depends on the processor, "
                "not on the layout.",
                size=in_bytes(found),
            )
        )


def _routed(result: RunResult) -> str:
    """What the prediction takes for granted of the router; nothing if it is what was measured."""
    if not result.spec.model.experts or result.spec.workload.balanced_router:
        return ""
    if measured_loads(result) is None:
        return say()(
            "The prediction is that of a balanced router, which sends every expert as many tokens. In this run the router chose, "
            "so activations, and the bytes to and from experts, differ: see the load of experts."
        )
    return say()(
        "The router of this run chose. Predicted traffic is that which follows from the measured load of experts. Predicted "
        "memory, and the formula of the payload, are those of a balanced router, which sends every expert as many tokens."
    )


def _traffic(folder: Path, result: RunResult, event: Event | None) -> None:
    mesh = _mesh(result)
    measure, rank = prediction.linked_measure(), chosen.rank(mesh)
    drawn = links(folder, measure, rank, view())
    if event is not None and event.communication is not None:
        drawn = pointed(
            drawn, matrix.marks(event.rank, event.communication.collective, event.communication.group, mesh, look(view()))
        )
    with st.grid(columns=2, min_column_width=drawing.CHART_PX, gap="medium") as grid:
        with grid.cell():
            prediction.traffic_card(result.spec, result, "measured", event)
            drawing.show(by_rank(folder, measure, rank, view()), "by-rank", on_rank=chosen.choose)
        drawing.show(drawn, "matrix", on_rank=chosen.choose)


def _walked(folder: Path, result: RunResult) -> Event | None:
    """The current event of the walk through the run; None without one."""
    step = walk.current(result.spec, partial(events, folder)) if _walkable(result) else None
    return step.event if step else None


def _walkable(result: RunResult) -> bool:
    """Whether one can step through the run: a run without training has no steps."""
    return not result.spec.generate.skip_training


def _timeline(folder: Path, result: RunResult, event: Event | None) -> None:
    ranks, cores = result.spec.layout.ranks, result.environment["cores"]
    note = say()(
        "Here {ranks} ranks shared {cores} and slowed each other down. On {ranks} devices they would run in "
        "parallel, as projected.",
        ranks=ranks,
        cores=say().plural("{count} core", "{count} cores", cores),
    )
    timelines.draw_run(folder, result, event, note, shared=ranks > cores)


def _rest(folder: Path, result: RunResult) -> None:
    drawing.heading(say()("Processes"), say()("Process memory"))
    st.dataframe(processes(folder, view()), hide_index=True, alt=say()("Memory of each process"))
    st.caption(say()("Resident memory holds Python and torch too, most of it shared by all ranks; unique is a rank's own."))
    st.caption(say()("Saved as `{name}`. Sizes are binary: 1 MiB is 1,048,576 bytes.", name=folder.name))


# ------------------------------------------------------------------------- charts: made once for each run, theme and option


def _made(folder: Path, view: View, make: Callable[[RunResult, Look], Drawing]) -> Drawing:
    return drawing.packed(make(load(folder), look(view)))


@st.cache_data(max_entries=64, show_spinner=False, hash_funcs=by_run())
def curve(folder: Path, rank: int, view: View) -> Drawing:
    return _made(folder, view, lambda r, style: memory.curve(r.tables["memory_curve"], rank, style))


@st.cache_data(max_entries=32, show_spinner=False, hash_funcs=by_run())
def by_rank(folder: Path, measure: traffic.Measure, rank: int | None, view: View) -> Drawing:
    def make(r: RunResult, style: Look) -> Drawing:
        return traffic.by_rank(r.tables["traffic"], r.spec.layout.ranks, measure, style, _roles(r, rank))

    return _made(folder, view, make)


@st.cache_data(max_entries=32, show_spinner=False, hash_funcs=by_run())
def losses(folder: Path, view: View) -> Drawing:
    return _made(folder, view, lambda r, style: loss.loss(r.tables["steps"], style))


@st.cache_data(max_entries=32, show_spinner=False, hash_funcs=by_run())
def expert_loads(folder: Path, view: View) -> Drawing:
    return _made(folder, view, lambda r, style: experts.by_expert(r.tables["expert_load"], style))


@st.cache_data(max_entries=32, show_spinner=False, hash_funcs=by_run())
def rank_loads(folder: Path, view: View) -> Drawing:
    return _made(folder, view, lambda r, style: experts.by_step(r.tables["expert_load"], style))


@st.cache_data(max_entries=64, show_spinner=False, hash_funcs=by_run())
def links(folder: Path, measure: traffic.Measure, rank: int | None, view: View) -> Drawing:
    def make(r: RunResult, style: Look) -> Drawing:
        return matrix.matrix(r.tables["traffic"], _mesh(r), measure, style, _roles(r, rank))

    return _made(folder, view, make)


@st.cache_resource(max_entries=64, show_spinner=False, hash_funcs=by_run())
def events(folder: Path, path: MicrobatchPath) -> list[Event]:
    """The events of one microbatch in the run's recorded step."""
    found = load(folder)
    return with_ledgers(lambda: events_of(found.spec, found.tables["traffic"], path, found.tables["spans"]))


def _roles(result: RunResult, rank: int | None) -> Roles | None:
    return None if rank is None else roles_of(_mesh(result), rank)


def _mesh(result: RunResult) -> Mesh:
    layout = result.spec.layout
    return layout.mesh


@st.cache_data(max_entries=32, show_spinner=False, hash_funcs=by_run())
def processes(folder: Path, view: View) -> pd.DataFrame:
    """The memory of each process, in MiB."""
    table, say = load(folder).tables["process"], look(view).say
    names = {
        "rss_bytes": say("resident (MiB)"),
        "uss_bytes": say("unique (MiB)"),
        "baseline_bytes": say("before the model (MiB)"),
        "peak_rss_bytes": say("peak (MiB)"),
    }
    shown = {name: (table[column] / 2**20).round(1) for column, name in names.items()}
    return pd.DataFrame({say("rank"): table["rank"], **shown})
