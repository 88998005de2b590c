"""Compare: two to four layouts or saved runs side by side, on the same scales, with their differences named."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pandas as pd
import streamlit as st

from engine.predict.run import textbook_timeline
from engine.schedule.orders import kinds_of
from engine.schedule.timeline import MOST, too_long
from engine.spec import RunSpec
from engine.topology import AXES_BY_FREQUENCY, EP
from pages.charts import multiples, timeline
from pages.charts.drawing import Drawing
from pages.charts.look import View, look
from pages.charts.names import sources
from pages.charts.units import in_time, percent
from pages.compare import adding, columns, differences, sweeping
from pages.compare.columns import Column, Missing
from pages.shared import beside, drawing, navigation
from pages.shared.beside import KEPT, RUN, WITH
from pages.shared.cache import cached, cached_by_size
from pages.shared.frame import inert, say, view
from pages.shared.predicted import listed
from pages.shared.service import Service

_MIB = 2**20


def show(service: Service) -> None:
    st.html(f'<h1 class="ss-unseen">{say()("Compare")}</h1>')
    if WITH not in st.query_params:
        st.query_params[WITH] = beside.BETWEEN.join(st.session_state.get(KEPT, columns.default_items()))
    items = beside.items_of(st.query_params[WITH])
    st.session_state[KEPT] = items
    found = columns.read(items, service)
    there = [column for column in found if isinstance(column, Column)]
    adding.bar(service, items, there)
    if not found:
        st.info(say()("Nothing to compare yet: add a layout or a saved run with the buttons above."), icon=":material/add:")
        return
    with st.container(key="compare-heads"):
        _heads(service, found, there)
    if len(found) == 1:
        st.info(say()("Add a second layout or a saved run above to see the differences."), icon=":material/add:")
    if there:
        _charts(found, there)
        _table(there)
        sweeping.draw(there)


# ------------------------------------------------------------------------------------------------- what heads the columns


def _heads(service: Service, found: Sequence[Column | Missing], there: Sequence[Column]) -> None:
    """The heads of the columns, row by row, so that each row has the same height in all columns."""
    items = [column.item for column in found]
    _row(found, lambda column, place: _title(column, there))
    if len({columns.sequences(column.spec) for column in there}) > 1:
        _row(found, lambda column, place: _batch(service, column, items, there[0], place))
    _row(found, lambda column, place: _buttons(service, column, items, place))
    if len(there) > 1:
        _row(found, lambda column, place: _differences(column, there))
        if len({column.source for column in there}) > 1:
            st.caption(
                say()("Some columns are measured and others predicted: their differences include the error of the prediction.")
            )


def _row(found: Sequence[Column | Missing], draw: Callable[[Column | Missing, int], None]) -> None:
    for place, (slot, column) in enumerate(zip(st.columns(len(found), gap="medium"), found, strict=True)):
        with slot:
            draw(column, place)


def _title(column: Column | Missing, there: Sequence[Column]) -> None:
    words = say()
    if isinstance(column, Missing):
        text = inert(words.sentence(column.sentence))
        st.error(words("{sentence}.", sentence=text[:1].upper() + text[1:].removesuffix(".")), icon=":material/error:")
        return
    drawing.heading(f"{column.model} · {sources(words)[column.source]}", column.spec.layout.code)
    if levers := columns.distinguishing(column, there, words):
        st.markdown(" · ".join(levers))
    if column.saved:
        st.caption(inert(column.item.removeprefix(RUN)))


def _batch(service: Service, column: Column | Missing, items: Sequence[str], base: Column, place: int) -> None:
    """The sequences of a step where columns differ in them, and a button that makes them those of the baseline."""
    if isinstance(column, Missing):
        return
    words, own, wanted = say(), columns.sequences(column.spec), columns.sequences(base.spec)
    with st.container(horizontal=True, vertical_alignment="center", gap="small"):
        text = words.plural("{count} sequence a step", "{count} sequences a step", own)
        if own == wanted:
            st.badge(text, icon=":material/stacks:", color="gray")
            return
        st.badge(text, icon=":material/warning:", color="orange")
        if (equal := columns.with_batch(column.spec, wanted, service)) is not None:
            st.button(
                words("Make it {count}", count=f"{wanted:,}"),
                key=f"compare/batch/{place}",
                type="tertiary",
                icon=":material/balance:",
                help=words("Replace this column by the same layout with as many sequences a step as the baseline has."),
                on_click=adding.put,
                args=([equal if item == column.item else item for item in items],),
            )
        else:
            st.caption(words("This layout cannot run a batch of {count} sequences.", count=f"{wanted:,}"))


def _differences(column: Column | Missing, there: Sequence[Column]) -> None:
    words = say()
    if isinstance(column, Missing):
        return
    if column is there[0]:
        st.caption(words("Baseline"))
        return
    with st.container(horizontal=True, gap="xsmall"):
        for d in differences.differences(there[0].result, column.result, words):
            if d.better is None:
                st.badge(d.text, icon=":material/equal:", color="gray")
            elif d.better:
                st.badge(d.text, icon=":material/arrow_downward:", color="green")
            else:
                st.badge(d.text, icon=":material/arrow_upward:", color="orange")


def _buttons(service: Service, column: Column | Missing, items: Sequence[str], place: int) -> None:
    words = say()
    others = [item for item in items if item != column.item]
    with st.container(horizontal=True, gap="small", vertical_alignment="center", key=f"compare-buttons-{place}"):
        if isinstance(column, Column):
            navigation.link("lab", words("Open in the Lab"), "science", _lab_link(service, column))
            if place:
                st.button(
                    words("Use as baseline"),
                    key=f"compare/first/{place}",
                    type="tertiary",
                    icon=":material/first_page:",
                    on_click=adding.put,
                    args=([column.item, *others],),
                )
        st.button(
            words("Remove"),
            key=f"compare/remove/{place}",
            type="tertiary",
            icon=":material/close:",
            on_click=adding.put,
            args=(others,),
        )


def _lab_link(service: Service, column: Column) -> dict[str, str]:
    link = {"spec": beside.item_of(column.spec, service.texts)}
    return link | ({"run": column.item.removeprefix(RUN)} if column.saved else {})


# ----------------------------------------------------------------------------------------------------- charts in columns


def _charts(found: Sequence[Column | Missing], there: Sequence[Column]) -> None:
    words = say()
    peaks = [c.result.tables["memory_peak"] for c in there]
    highest = max(int(peak.groupby("rank")["bytes"].sum().max()) for peak in peaks)
    present = {category for peak in peaks for category in peak.loc[peak["bytes"] > 0, "category"]}
    sends = [multiples.by_collective(c.result.tables["traffic"], listed(c.spec.layout)) for c in there]
    most = max((float(sent["bytes"].max()) for sent in sends if len(sent)), default=0.0)
    kinds = {pair for sent in sends for pair in zip(sent["axis"], sent["collective"], strict=True)}
    ordered = tuple(sorted(kinds, key=lambda pair: ((*AXES_BY_FREQUENCY, EP).index(pair[0]), pair[1])))
    longest = max((_makespan(c.spec) for c in there if _too_long(c.spec) is None), default=0.0)

    st.html(multiples.legend(list(present), look(view())))
    _each(found, "memory", lambda c: memory(c.result.tables["memory_peak"], highest, c.spec.layout.ranks, view()))
    _each(found, "traffic", lambda c: traffic(c.result.tables["traffic"], listed(c.spec.layout), most, ordered, view()))
    st.html(multiples.lane_legend({kind for c in there for kind in _kinds(c.spec)}, look(view())))
    _each(found, "pipeline", lambda c: pipeline(c.spec, longest, view()), lambda c: _too_long(c.spec))
    if all(c.measured for c in there):
        kinds_run = {kind for c in there for kind in c.result.tables["spans"]["kind"].unique()}
        st.html(multiples.lane_legend(kinds_run, look(view())))
        last = max(float(c.result.tables["spans"]["end_ns"].max()) for c in there)
        _each(found, "measured", lambda c: clocked(c.result.tables["spans"], c.spec, last, view()))
    elif any(c.measured for c in there):
        st.caption(words("Measured timelines are shown where all columns are measured."))


def _too_long(spec: RunSpec) -> str | None:
    return too_long(spec.layout, spec.workload.microbatches)


@cached(256)
def _makespan(spec: RunSpec) -> float:
    return textbook_timeline(spec).makespan * differences.layer_units(spec)


@cached(256)
def _kinds(spec: RunSpec) -> frozenset[str]:
    layout, microbatches = spec.layout, spec.workload.microbatches
    if _too_long(spec) is not None:
        return frozenset()
    return frozenset(kinds_of(layout.schedule, layout.pp, microbatches, layout.chunks))


def _each(
    found: Sequence[Column | Missing],
    key: str,
    make: Callable[[Column], Drawing],
    not_drawn: Callable[[Column], str | None] = lambda column: None,
) -> None:
    """One chart in each column. `not_drawn` gives the reason if a column has no such chart."""
    there = [column for column in found if isinstance(column, Column)]

    def draw(column: Column | Missing, place: int) -> None:
        if not isinstance(column, Column):
            return
        if (reason := not_drawn(column)) is not None:
            st.caption(say()("Its timeline is not drawn: {reason}.", reason=say().sentence(reason)))
        else:
            drawn = make(column)
            of = columns.title(column, there, say())  # on a narrow page, columns are one below the other
            drawing.show(replace(drawn, subject=f"{drawn.subject} · {of}"), f"{key}-{place}")

    _row(found, draw)


@st.cache_data(max_entries=128, show_spinner=False)
def memory(peak: pd.DataFrame, highest: int, ranks: int, view: View) -> Drawing:
    return drawing.packed(multiples.memory(peak, highest, look(view), ranks))


@st.cache_data(max_entries=128, show_spinner=False)
def traffic(table: pd.DataFrame, ranks: int, highest: float, kinds: multiples.Sends, view: View) -> Drawing:
    return drawing.packed(multiples.traffic(table, ranks, highest, kinds, look(view)))


def _rows(drawn: Drawing) -> int:
    """Size for the cache: the rows of its table, and a constant for everything else."""
    return 2_000 + len(drawn.table)


@cached_by_size(MOST, _rows)
def pipeline(spec: RunSpec, longest: float, view: View) -> Drawing:
    """The textbook timeline; also for a measured run."""
    style = look(view)
    say = style.say
    made = textbook_timeline(spec)
    names = [say("stage {stage}", stage=stage) for stage in range(spec.layout.pp)]
    panel = timeline.replayed_panel("textbook", list(made.timed), names, say, differences.layer_units(spec))
    drawn = timeline.draw([panel], style, least=longest)
    title = say("Bubble {share} of {count} units", share=percent(panel.bubble), count=f"{panel.makespan:g}")
    reading = say(
        "Textbook: a unit is the forward pass of one sequence through one layer on one device, and tp ranks share it; a backward "
        "pass takes twice as long. The bubble is a share of total time."
    )
    return drawing.packed(multiples.without_legend(replace(drawn, title=title, reading=reading, moving="")))


@st.cache_data(max_entries=64, show_spinner=False)
def clocked(spans: pd.DataFrame, spec: RunSpec, last: float, view: View) -> Drawing:
    """The measured timeline."""
    style, layout = look(view), spec.layout
    panel = timeline.measured_panel(spans, layout.mesh, style.say)
    drawn = timeline.draw([panel], style, least=last)
    title = style.say("Bubble {share} of {time}", share=percent(panel.bubble), time=in_time(panel.makespan))
    reading = style.say("By the wall clock of this machine, whose cores the ranks shared. The bubble is a share of total time.")
    return drawing.packed(multiples.without_legend(replace(drawn, title=title, reading=reading, moving="")))


# ------------------------------------------------------------------------------------------------------------ the table


def _table(there: Sequence[Column]) -> None:
    """The table of all figures. Sizes are in MiB; in the file they are in bytes."""
    words = say()
    exact = pd.DataFrame([figures(column) for column in there])
    exact.insert(0, "what", [columns.title(column, there, words) for column in there])
    drawing.heading(words("All figures"), words("Click a column's head to sort by it"))
    shown = exact.drop(columns="layout").assign(
        source=exact["source"].map(sources(words)),
        peak_bytes=exact["peak_bytes"] / _MIB,
        least_peak_bytes=exact["least_peak_bytes"] / _MIB,
        wire_bytes_per_rank=exact["wire_bytes_per_rank"] / _MIB,
        bubble=100 * exact["bubble"],
    )
    if "step_ns" in shown:
        shown["step_ns"] = shown["step_ns"] / 1e6
    number = st.column_config.NumberColumn
    config: dict[str, Any] = {
        "what": st.column_config.TextColumn(words("layout"), width="medium"),
        "model": words("model"),
        "source": words("source"),
        "ranks": number(words("number of ranks")),
        "sequences": number(words("sequences a step")),
        "peak_bytes": number(words("peak (MiB)"), format="%.2f", help=words("Of the fullest rank.")),
        "peak_rank": number(words("on rank")),
        "least_peak_bytes": number(words("least peak (MiB)"), format="%.2f", help=words("Of the rank with the lowest peak.")),
        "wire_bytes_per_rank": number(words("sent per rank (MiB)"), format="%.2f", help=words("Wire bytes of a step, the mean.")),
        "bubble": number(words("bubble (%)"), format="%.1f", help=words("Of total time. Predicted: in textbook times.")),
        "step_ns": number(words("step time (ms)"), format="%.1f", help=words("On this machine.")),
        "loss_last": number(words("last loss"), format="%.3f"),
    }
    st.dataframe(
        shown,
        hide_index=True,
        width="stretch",
        column_config=config,
        alt=words("All figures"),
        key="compare-table",
        placeholder="–",
    )
    st.download_button(
        words("Save as CSV, in exact bytes"),
        data=lambda: exact.to_csv(index=False).encode(),
        file_name="shardscope-compare.csv",
        mime="text/csv",
        key="compare/csv",
        icon=":material/download:",
        on_click="ignore",
    )


def figures(column: Column) -> dict[str, object]:
    """The exact numbers of a column, by the names of tables' columns."""
    summary, layout = column.result.summary, column.spec.layout
    peak = column.result.tables["memory_peak"].groupby("rank")["bytes"].sum()
    row: dict[str, object] = {
        "model": column.model,
        "layout": layout.code,
        "source": column.source,
        "ranks": layout.ranks,
        "sequences": columns.sequences(column.spec),
        "peak_bytes": int(summary["peak_bytes"]),
        "peak_rank": int(summary["peak_rank"]),
        "least_peak_bytes": int(peak.min()),
        "wire_bytes_per_rank": float(summary["wire_bytes_per_rank"]),
        "bubble": float(summary["bubble"]),
    }
    if column.measured:
        row["step_ns"] = int(summary["step_ns"])
        if "loss_last" in summary:
            row["loss_last"] = float(summary["loss_last"])
    return row
