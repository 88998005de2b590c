"""Compare: two to four layouts or saved runs side by side, on the same scales, with their differences named."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pandas as pd
import streamlit as st

from engine import store
from engine.predict.run import textbook_timeline
from engine.spec import RequestError, RunSpec
from pages.charts import multiples, timeline
from pages.charts.drawing import Drawing
from pages.charts.look import View, look
from pages.compare import columns, differences, sweep
from pages.compare.columns import Column, Missing
from pages.shared import drawing, form, frame, links, ways
from pages.shared.service import Service

WITH = "with"  # the link's parameter: what stands side by side
BASE, LEVER = "of", "sweep"  # of the sweep: which column, and which lever
_SHOWN_DIFFERENCES = 4
_CHART_PX = 300  # the least width of a column


def show(service: Service) -> None:
    st.html(f'<h1 class="ss-unseen">{frame.say()("Compare")}</h1>')
    if WITH not in st.query_params:
        st.query_params[WITH] = columns.BETWEEN.join(columns.default_items())
    items = columns.items_of(st.query_params[WITH])
    found = columns.read(items, service)
    there = [column for column in found if isinstance(column, Column)]
    _bar(service, items, there)
    if not found:
        st.info(frame.say()("Nothing stands here yet: add a layout or a saved run with the button above."), icon=":material/add:")
        return
    with st.container(key="columns"):
        for place, column in zip(st.columns(len(found), gap="medium"), found, strict=True):
            with place:
                _column(service, column, there, items)
    if there:
        _table(there)
        _sweep(there)


# ------------------------------------------------------------------------------------------------------ what stands here


def _bar(service: Service, items: Sequence[str], there: Sequence[Column]) -> None:
    """What can be added."""
    say = frame.say()
    full = len(items) >= columns.MOST
    with st.container(horizontal=True, vertical_alignment="center", key="compare-bar"):
        st.markdown(f"### {say('Side by side')}", anchors=False)
        with st.popover(say("Add a layout"), icon=":material/add:", disabled=full):
            _add_layout(service, items, there)
        with st.popover(say("Add a saved run"), icon=":material/folder_open:", disabled=full):
            _add_run(service, items)
        if full:
            st.caption(say("Four is the most that stand side by side; remove one to add another."))


def _add_layout(service: Service, items: Sequence[str], there: Sequence[Column]) -> None:
    say = frame.say()
    if (held := form.held()) is not None:
        st.button(
            say("What the Lab's form holds now"),
            width="stretch",
            on_click=_put,
            args=([*items, links.encode(held)],),
            icon=":material/science:",
        )
    if not there:
        return
    st.caption(say("Or one of these with a lever moved:"))
    names = {column.item: columns.title(column, there) for column in there}
    item = st.selectbox(say("Layout"), names, format_func=names.__getitem__, key="compare/base")
    lever = st.selectbox(say("Lever"), list(sweep.LEVERS), key="compare/lever")
    base = next(column.spec for column in there if column.item == item)
    values = _values(base, lever)
    if not values:
        st.info(say("No other value of this lever goes with the rest."))
        return
    value = st.selectbox(say("Value"), list(values), key=f"compare/value/{lever}")
    new = columns.item_of(values[value], service)
    st.button(say("Add"), type="primary", width="stretch", on_click=_put, args=([*items, new],), disabled=new in items)


def _values(base: RunSpec, lever: str) -> dict[str, RunSpec]:
    """The values of a lever that go with the rest, as labels, and the spec with each; without the value it has."""
    found = {}
    for value in sweep.LEVERS[lever]:
        try:
            spec = sweep.having(base, lever, value)
        except RequestError:  # it does not go with the rest, so it is not offered
            continue
        if spec != base:
            found[sweep.shown(value)] = spec
    return found


def _add_run(service: Service, items: Sequence[str]) -> None:
    say = frame.say()
    names = [folder.name for folder in store.listing(service.home) if columns.RUN + folder.name not in items]
    if not names:
        st.info(say("There is no other saved run: press Run in the Lab, and it will be here."))
        return
    name = st.selectbox(say("Saved run"), names, key="compare/run")
    st.button(
        say("Add"), type="primary", width="stretch", key="compare/add-run", on_click=_put, args=([*items, columns.RUN + name],)
    )


def _put(items: Sequence[str]) -> None:
    """Make the link say what stands side by side. A callback."""
    st.query_params[WITH] = columns.BETWEEN.join(items)


# ------------------------------------------------------------------------------------------------------------ one column


def _column(service: Service, column: Column | Missing, there: Sequence[Column], items: Sequence[str]) -> None:
    say = frame.say()
    place = list(items).index(column.item)
    if isinstance(column, Missing):
        st.error(say.sentence(column.sentence), icon=":material/error:")
        _buttons(service, column, items, place)
        return
    name = columns.title(column, there)
    kind = say("measured") if column.measured else say("predicted")
    drawing.heading(f"{column.model} · {kind}", name)
    _named_differences(column, there)
    _buttons(service, column, items, place)
    highest = max(int(c.result.tables["memory_peak"].groupby("rank")["bytes"].sum().max()) for c in there)
    drawing.show(memory(column.result.tables["memory_peak"], highest, frame.view()), f"memory-{place}")
    sends = [multiples.by_collective(c.result.tables["traffic"], c.spec.layout.ranks)["bytes"].max() for c in there]
    most = max([float(x) for x in sends if x == x], default=0.0)
    drawing.show(traffic(column.result.tables["traffic"], column.spec.layout.ranks, most, frame.view()), f"traffic-{place}")
    drawing.show(pipeline(column.spec, frame.view()), f"pipeline-{place}")


def _named_differences(column: Column, there: Sequence[Column]) -> None:
    say = frame.say()
    if column is there[0]:
        st.caption(say("The others are compared with this one."))
        return
    found = differences.differences(there[0].result, column.result, say)[:_SHOWN_DIFFERENCES]
    if there[0].measured != column.measured:
        st.caption(say("One of the two is measured and the other predicted; their errors are part of the differences."))
    if not found:
        st.caption(say("No difference of half a percent or more."))
    with st.container(horizontal=True, gap="xsmall"):
        for d in found:
            icon, colour = {True: ("trending_down", "green"), False: ("trending_up", "orange"), None: ("swap_vert", "gray")}[
                d.better
            ]
            st.badge(d.text, icon=f":material/{icon}:", color=colour)  # type: ignore[arg-type]


def _buttons(service: Service, column: Column | Missing, items: Sequence[str], place: int) -> None:
    say = frame.say()
    with st.container(horizontal=True, gap="xsmall"):
        if isinstance(column, Column):
            ways.link("lab", say("Open in the Lab"), "science", _lab_link(service, column))
        if place:
            to_front = [column.item, *(item for item in items if item != column.item)]
            st.button(say("Compare with this"), key=f"compare/first/{place}", type="tertiary", on_click=_put, args=(to_front,))
        others = [item for item in items if item != column.item]
        st.button(
            say("Remove"),
            key=f"compare/remove/{place}",
            type="tertiary",
            icon=":material/close:",
            on_click=_put,
            args=(others,),
        )


def _lab_link(service: Service, column: Column) -> dict[str, str]:
    link = {"spec": columns.item_of(column.spec, service)}
    return link | ({"run": column.item.removeprefix(columns.RUN)} if column.measured else {})


# ----------------------------------------------------------------------------------------------------- table and sweep


def _table(there: Sequence[Column]) -> None:
    say = frame.say()
    rows = pd.DataFrame([_row(column, there) for column in there])
    drawing.heading(say("All figures"), say("A column's head sorts; the menu above the table at the right saves it as CSV"))
    st.dataframe(rows, hide_index=True, width="stretch", alt=say("All figures"), key="compare-table")


def _row(column: Column, there: Sequence[Column]) -> dict[str, object]:
    say, summary = frame.say(), column.result.summary
    layout, workload = column.spec.layout, column.spec.workload
    peak = column.result.tables["memory_peak"].groupby("rank")["bytes"].sum()
    row: dict[str, object] = {
        say("layout"): columns.title(column, there),
        say("source"): say("measured") if column.measured else say("predicted"),
        say("ranks"): layout.ranks,
        say("sequences a step"): layout.dp * workload.microbatches * workload.microbatch_size,
        say("peak memory, fullest rank (bytes)"): summary["peak_bytes"],
        say("fullest rank"): summary["peak_rank"],
        say("peak memory, emptiest rank (bytes)"): int(peak.min()),
        say("traffic of a rank in a step (bytes)"): round(summary["wire_bytes_per_rank"]),
        say("bubble (% of total time)"): round(100 * summary["bubble"], 2),
    }
    if "step_ns" in summary:
        row[say("step (ms)")] = round(summary["step_ns"] / 1e6, 2)
    if "loss_last" in summary:
        row[say("loss")] = round(summary["loss_last"], 4)
    return row


def _sweep(there: Sequence[Column]) -> None:
    say = frame.say()
    names = {column.item: columns.title(column, there) for column in there}
    st.markdown(f"### {say('One lever through all its values')}", anchors=False)
    with st.container(horizontal=True, vertical_alignment="bottom"):
        item = _kept_select(say("Layout"), list(names), BASE, names.__getitem__)
        lever = _kept_select(say("Lever"), list(sweep.LEVERS), LEVER, str)
    base = next(column.spec for column in there if column.item == item)
    made = swept(base, lever)
    here = sweep.shown(getattr(getattr(base, lever.split(".")[0]), lever.split(".")[1]))
    field = lever.split(".")[1]
    drawings: list[tuple[str, Callable[..., Drawing], pd.DataFrame]] = [
        ("sweep-memory", multiples.sweep_memory, made.memory),
        ("sweep-traffic", multiples.sweep_traffic, made.figures),
        ("sweep-bubble", multiples.sweep_bubble, made.figures),
    ]
    with st.grid(columns=3, min_column_width=_CHART_PX, gap="medium") as grid:
        for key, make, rows in drawings:
            with grid.cell():
                drawing.show(make(rows, field, here, look(frame.view())), key)
    if made.left_out:
        with st.expander(say("Values that do not go with the rest")):
            for value, sentence in made.left_out:
                st.markdown(f"- **{field}={value}**: {say.sentence(sentence)}")


def _kept_select(label: str, options: list[str], parameter: str, name: Callable[[str], str]) -> str:
    """A choice that the link carries."""
    held = st.query_params.get(parameter, options[0])
    key = f"compare/{parameter}"
    if st.session_state.get(key) not in options:
        st.session_state[key] = held if held in options else options[0]
    picked: str = st.selectbox(label, options, format_func=name, key=key, width=320)
    if picked == options[0]:
        st.query_params.pop(parameter, None)
    else:
        st.query_params[parameter] = picked
    return picked


# ------------------------------------------------------------------------------------------- made once for a view and input


@st.cache_data(max_entries=128, show_spinner=False)
def memory(peak: pd.DataFrame, highest: int, view: View) -> Drawing:
    return drawing.packed(multiples.memory(peak, highest, look(view)))


@st.cache_data(max_entries=128, show_spinner=False)
def traffic(table: pd.DataFrame, ranks: int, highest: float, view: View) -> Drawing:
    return drawing.packed(multiples.traffic(table, ranks, highest, look(view)))


@st.cache_data(max_entries=128, show_spinner=False)
def pipeline(spec: RunSpec, view: View) -> Drawing:
    """The textbook timeline: for a measured run too, since clocks of different runs do not compare."""
    made = textbook_timeline(spec)
    names = [frame.say()("stage {stage}", stage=s) for s in range(spec.layout.pp)]
    return drawing.packed(timeline.textbook(list(made.timed), names, look(view)))


@st.cache_data(max_entries=64, show_spinner=False)
def swept(base: RunSpec, lever: str) -> sweep.Sweep:
    return sweep.sweep(base, lever)
