"""A saved run, read: the few numbers first, then the charts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pandas as pd
import streamlit as st

from engine import catalog, store
from engine.spec import RequestError
from engine.tables import RunResult
from engine.topology import Mesh
from pages.charts import loss, memory, timeline, traffic
from pages.charts.drawing import Drawing
from pages.charts.look import Look, View, look
from pages.charts.units import plural
from pages.lab.figures import as_html, figures, parity
from pages.shared import drawing
from pages.shared.form import SCHEDULE_NAMES
from pages.shared.frame import view

_RANK, _MEASURE = "lab/rank", "lab/measure"
MEASURES = ("wire", "payload")
_NEEDED = ("memory_peak", "memory_curve", "process", "traffic", "spans", "steps")
_CHART_PX = 520  # two charts stand side by side where each has that much


@st.cache_resource(max_entries=8, show_spinner=False)
def load(folder: Path) -> RunResult:
    """A saved run never changes, so all sessions read one copy; nobody writes to its tables. Raises `RequestError`."""
    result = store.load(folder)
    if missing := [name for name in _NEEDED if name not in result.tables]:
        raise RequestError(f"{folder.name} is not whole: it lacks {', '.join(missing)}")
    return result


def headline(result: RunResult) -> str:
    spec = result.spec
    schedule = f", {SCHEDULE_NAMES[spec.layout.schedule]}" if spec.layout.pp > 1 else ""
    return f"{catalog.name_of(spec.model)} on {spec.layout.code}{schedule}"


@st.fragment
def draw(folder: Path) -> None:
    """The whole reading of a run. Its own controls redraw it alone."""
    try:
        result = load(folder)
    except RequestError as error:
        st.error(f"This run cannot be shown: {error}.", icon=":material/error:")
        return
    st.markdown(f"### Measured: {headline(result)}", anchors=False)
    st.html(as_html(figures(result)))
    _parity(result)
    _generated(result)
    _memory(folder, result)
    _traffic(folder, result)
    _timeline(folder, result)
    _rest(folder, result)


def _parity(result: RunResult) -> None:
    found = parity(result)
    if found is None:
        st.badge("Not checked against the unsharded model", icon=":material/help:", color="gray")
        return
    if found.good:
        st.badge(found.sentence, icon=":material/check:", color="green")
    else:
        st.badge(found.sentence, icon=":material/error:", color="red")
    table = result.tables["parity"].drop(columns="source")
    with st.expander(f"All {len(table)} parameters", key="table-parity", on_change="rerun", type="compact") as numbers:
        if numbers.open:
            format = st.column_config.NumberColumn(format="%.2e")
            st.dataframe(table, hide_index=True, column_config={"max_abs": format, "max_rel": format}, alt="Gradient differences")


def _generated(result: RunResult) -> None:
    """The text that the run wrote: all ranks together are one model."""
    if found := result.summary.get("generated"):
        drawing.heading("Generated", f"{plural(len(found['tokens']), 'token')} after the prompt")
        st.code(found["prompt"] + found["text"], language=None, wrap_lines=True)


def _memory(folder: Path, result: RunResult) -> None:
    ranks = range(result.spec.layout.ranks)

    def pick_rank() -> None:
        st.selectbox("Rank", ranks, key=_RANK, format_func="rank {}".format, label_visibility="collapsed", width=130)

    if st.session_state.get(_RANK) not in ranks:
        st.session_state[_RANK] = result.summary["peak_rank"]
    with st.grid(columns=2, min_column_width=_CHART_PX, gap="medium") as grid:
        with grid.cell():
            drawing.show(peak(folder, view()), "peak")
        with grid.cell():
            drawing.show(curve(folder, st.session_state[_RANK], view()), "curve", pick_rank)


def _traffic(folder: Path, result: RunResult) -> None:
    def pick_measure() -> None:
        st.segmented_control("Bytes", MEASURES, key=_MEASURE, required=True, label_visibility="collapsed")

    measure = st.session_state.setdefault(_MEASURE, "wire")
    with st.grid(columns=2, min_column_width=_CHART_PX, gap="medium") as grid:
        with grid.cell():
            drawing.show(kinds(folder, measure, view()), "kinds", pick_measure)
        with grid.cell():
            drawing.show(by_rank(folder, measure, view()), "by-rank")


def _timeline(folder: Path, result: RunResult) -> None:
    ranks, cores = result.spec.layout.ranks, result.environment["cores"]
    note = (
        f"Here {ranks} ranks shared {plural(cores, 'core')} and slowed each other down: on {ranks} devices they would overlap "
        "as the textbook draws them."
    )
    drawing.show(measured(folder, view()), "timeline", note=note if ranks > cores else "")


def _rest(folder: Path, result: RunResult) -> None:
    with st.grid(columns=2, min_column_width=_CHART_PX, gap="medium") as grid:
        if "loss_last" in result.summary:
            with grid.cell():
                drawing.show(losses(folder, view()), "loss")
        with grid.cell():
            drawing.heading("Processes", "What the operating system sees")
            st.dataframe(processes(folder), hide_index=True, alt="Memory of each process")
            st.caption("Resident memory holds Python and torch too, most of it shared by all ranks; unique is a rank's own.")
    st.caption(f"Saved as `{folder.name}`. Sizes are binary: 1 MiB is 1,048,576 bytes.")


# ------------------------------------------------------------------------- charts: made once for a run, theme and option


def _made(folder: Path, view: View, make: Callable[[RunResult, Look], Drawing]) -> Drawing:
    return drawing.packed(make(load(folder), look(view)))


@st.cache_data(max_entries=32, show_spinner=False)
def peak(folder: Path, view: View) -> Drawing:
    return _made(folder, view, lambda r, style: memory.peak(r.tables["memory_peak"], style))


@st.cache_data(max_entries=64, show_spinner=False)
def curve(folder: Path, rank: int, view: View) -> Drawing:
    return _made(folder, view, lambda r, style: memory.curve(r.tables["memory_curve"], rank, style))


@st.cache_data(max_entries=64, show_spinner=False)
def kinds(folder: Path, measure: traffic.Measure, view: View) -> Drawing:
    return _made(folder, view, lambda r, style: traffic.kinds(r.tables["traffic"], r.spec.layout.ranks, measure, style))


@st.cache_data(max_entries=32, show_spinner=False)
def by_rank(folder: Path, measure: traffic.Measure, view: View) -> Drawing:
    return _made(folder, view, lambda r, style: traffic.by_rank(r.tables["traffic"], r.spec.layout.ranks, measure, style))


@st.cache_data(max_entries=32, show_spinner=False)
def losses(folder: Path, view: View) -> Drawing:
    return _made(folder, view, lambda r, style: loss.loss(r.tables["steps"], style))


@st.cache_data(max_entries=32, show_spinner=False)
def measured(folder: Path, view: View) -> Drawing:
    return _made(folder, view, lambda r, style: timeline.measured(r.tables["spans"], _mesh(r), style))


def _mesh(result: RunResult) -> Mesh:
    layout = result.spec.layout
    return Mesh(layout.dp, layout.tp, layout.pp)


@st.cache_data(max_entries=32, show_spinner=False)
def processes(folder: Path) -> pd.DataFrame:
    """The memory of each process, in MiB."""
    table = load(folder).tables["process"]
    names = {"rss_bytes": "resident", "uss_bytes": "unique", "baseline_bytes": "before the model", "peak_rss_bytes": "highest"}
    shown = {f"{name} (MiB)": (table[column] / 2**20).round(1) for column, name in names.items()}
    return pd.DataFrame({"rank": table["rank"], **shown})
