"""What a choice would cost: memory of every rank, and traffic. Each number can be unfolded into its formula."""

from __future__ import annotations

import pandas as pd
import streamlit as st

from engine.devices import DEVICES
from engine.predict.memory import SYMBOLS
from engine.predict.traffic import terms as traffic_terms
from engine.predict.traffic import traffic
from engine.predict.traffic.loads import following, measured_loads
from engine.spec import RunSpec
from engine.tables import RunResult
from engine.topology import Mesh
from pages.charts import beside, formula
from pages.charts.drawing import Drawing
from pages.charts.look import View, look
from pages.charts.names import categories, doing, measures, phase
from pages.charts.roles import Roles, roles_of
from pages.charts.traffic import Measure
from pages.charts.units import in_bytes
from pages.lab.events import Event
from pages.shared import chosen, drawing
from pages.shared.cache import cached
from pages.shared.frame import say, view
from pages.shared.pointing import pointed
from pages.shared.predicted import listed, peaks, predicted, with_ledgers_shown
from pages.shared.unfolding import unfolding

DEVICE, MEASURE = "device", "bytes"  # the link's parameters
NO_DEVICE = "none"
MEASURES: tuple[Measure, ...] = ("wire", "payload")
_DEFAULT_DEVICE = "rtx-4090"


def draw(spec: RunSpec, event: Event | None) -> None:
    """Predicted memory and traffic. `event` is framed in the bar that counts it."""
    with st.grid(columns=2, min_column_width=drawing.CHART_PX, gap="medium"):
        memory_card(spec, None, "predicted")
        traffic_card(spec, None, "predicted", event)


def memory_card(spec: RunSpec, measured: RunResult | None, key: str) -> None:
    """The memory chart, with the formula of a bar. `measured`: a run of `spec`, drawn beside it. `key` of its widgets."""
    mesh = spec.layout.mesh
    rank, table = chosen.rank(mesh), None if measured is None else measured.tables["memory_peak"]
    asked = linked_device(), rank, view()
    made = predicted_memory(spec, *asked) if table is None else measured_memory(spec, table, *asked)
    drawing.show(
        made,
        f"memory-{key}",
        lambda: _pick_device(key),
        on_rank=chosen.choose,
        below=lambda: _unfold_memory(spec, table, mesh, rank, key),
    )


def traffic_card(spec: RunSpec, measured: RunResult | None, key: str, event: Event | None) -> None:
    """The same for traffic, of the chosen rank or else the mean of all."""
    rank = chosen.rank(spec.layout.mesh)
    table = None if measured is None else measured.tables["traffic"]
    asked = linked_measure(), rank, view()
    loads = None if measured is None else measured_loads(measured)
    made = predicted_traffic(spec, *asked) if table is None else measured_traffic(spec, table, loads, *asked)
    if event is not None and event.communication is not None:
        calls = event.communication
        made = pointed(made, beside.marks(calls.axis, calls.collective, calls.phase, say()))
    drawing.show(made, f"traffic-{key}", lambda: _pick_measure(key), below=lambda: _unfold_traffic(spec, rank, key))


@cached(128)
def predicted_memory(spec: RunSpec, device: str, rank: int | None, view: View) -> Drawing:
    return _memory(spec, None, device, rank, view)


@cached(128)
def predicted_traffic(spec: RunSpec, measure: Measure, rank: int | None, view: View) -> Drawing:
    return _traffic(spec, None, None, measure, rank, view)


@st.cache_data(max_entries=32, show_spinner=False)
def measured_memory(spec: RunSpec, measured: pd.DataFrame, device: str, rank: int | None, view: View) -> Drawing:
    return _memory(spec, measured, device, rank, view)


@st.cache_data(max_entries=32, show_spinner=False)
def measured_traffic(
    spec: RunSpec, measured: pd.DataFrame, loads: pd.DataFrame | None, measure: Measure, rank: int | None, view: View
) -> Drawing:
    """`loads`: those that the run measured, if its traffic depends on them."""
    return _traffic(spec, measured, loads, measure, rank, view)


def _memory(spec: RunSpec, measured: pd.DataFrame | None, device: str, rank: int | None, view: View) -> Drawing:
    capacity = DEVICES[device].memory_bytes if device in DEVICES else None
    formula_says = predicted(spec).tables["memory_peak"]
    drawn = beside.memory(measured, formula_says, capacity, device, look(view), _roles(spec, rank), spec.layout.ranks)
    return drawing.packed(drawn)


def _traffic(
    spec: RunSpec,
    measured: pd.DataFrame | None,
    loads: pd.DataFrame | None,
    measure: Measure,
    rank: int | None,
    view: View,
) -> Drawing:
    formula_says = predicted(spec).tables["traffic"]
    if rank is not None and not _mesh(spec).all_listed:
        formula_says = with_ledgers_shown(lambda: traffic(spec, [rank]))
    if loads is not None:
        balanced = formula_says
        formula_says = with_ledgers_shown(lambda: following(spec, balanced, loads))
    return drawing.packed(beside.traffic(measured, formula_says, listed(spec.layout), measure, rank, look(view)))


def _roles(spec: RunSpec, rank: int | None) -> Roles | None:
    return None if rank is None else roles_of(_mesh(spec), rank)


def _mesh(spec: RunSpec) -> Mesh:
    return spec.layout.mesh


# --------------------------------------------------------------------------------------------------------- from the link


def linked_device() -> str:
    named = st.query_params.get(DEVICE, _DEFAULT_DEVICE)
    return named if named in DEVICES or named == NO_DEVICE else _DEFAULT_DEVICE


def linked_measure() -> Measure:
    return "payload" if st.query_params.get(MEASURE) == "payload" else "wire"


def _pick_device(key: str) -> None:
    """The control for the device whose capacity the memory chart shows."""
    widget = f"lab/device/{key}"
    st.session_state[widget] = linked_device()
    names = {NO_DEVICE: say()("no device")} | {name: name for name in DEVICES}
    st.selectbox(
        say()("Device"),
        list(names),
        key=widget,
        format_func=names.__getitem__,
        on_change=_to_link,
        args=(DEVICE, widget, _DEFAULT_DEVICE),
        label_visibility="collapsed",
        width=150,
    )


def _pick_measure(key: str) -> None:
    widget = f"lab/bytes/{key}"
    st.session_state[widget] = linked_measure()
    named = measures(say())
    st.segmented_control(
        say()("Bytes"),
        MEASURES,
        key=widget,
        format_func=named.__getitem__,
        on_change=_to_link,
        args=(MEASURE, widget, "wire"),
        required=True,
        label_visibility="collapsed",
    )


def _to_link(parameter: str, widget: str, default: str) -> None:
    """Write a control's value into the link if it differs from the default. A callback."""
    value = st.session_state[widget]
    if value == default:
        st.query_params.pop(parameter, None)
    else:
        st.query_params[parameter] = value


# ---------------------------------------------------------------------------------------------------------- the formulas


def _unfold_memory(spec: RunSpec, measured: pd.DataFrame | None, mesh: Mesh, rank: int | None, key: str) -> None:
    words, style = say(), look(view())
    found = peaks(spec)
    shown = rank if rank is not None else mesh.rank({"pp": found.fullest.stage})
    peak = found.of(mesh.coordinate(shown))
    label = words("The formula for rank {rank}: {size}", rank=shown, size=in_bytes(peak.total))
    with unfolding(label, f"unfold-memory-{key}", icon=":material/function:", type="compact") as unfolded:
        if not unfolded.open:
            return
        st.caption(
            words(
                "At its peak, during {action}. Click another bar to see another rank.",
                action=doing(peak.action, spec.layout.chunks, words),
            )
        )
        own = None
        if measured is not None:
            mine = measured[measured["rank"] == shown]
            own = dict(zip(mine["category"], mine["bytes"], strict=True))
        st.html(formula.unfolded(peak.terms, categories(words), own, style))
        st.html(formula.glossary([term for terms in peak.terms.values() for term in terms], SYMBOLS, style))


def _unfold_traffic(spec: RunSpec, rank: int | None, key: str) -> None:
    words, style = say(), look(view())
    shown = rank or 0
    label = words("The formula for the payload of rank {rank}", rank=shown)
    with unfolding(label, f"unfold-traffic-{key}", icon=":material/function:", type="compact") as unfolded:
        if not unfolded.open:
            return
        st.caption(words("Payload bytes of one step, by axis and collective: calls times the size of the tensor."))
        found = with_ledgers_shown(lambda: traffic_terms(spec, shown))
        names = {
            f"{axis} {collective} {code}": words(
                "{axis} {collective}, {phase}", axis=axis, collective=collective, phase=phase(code, words)
            )
            for axis, collective, code in found
        }
        parts = {f"{axis} {collective} {code}": terms for (axis, collective, code), terms in found.items()}
        st.html(formula.unfolded(parts, names, None, style))
        st.html(formula.glossary([term for terms in parts.values() for term in terms], SYMBOLS, style))
