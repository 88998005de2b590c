"""Plan: a model on a number of devices. Which layouts fit and are fastest; why a layout does not fit, and what to change."""

from __future__ import annotations

from typing import Any

import pandas as pd
import streamlit as st

from engine.spec import RequestError
from engine.tables import CATEGORIES
from engine.topology import AXES
from pages.charts import plan as charts
from pages.charts.drawing import Drawing
from pages.charts.look import View, look
from pages.charts.names import recompute
from pages.charts.units import in_bytes, percent, short, significant
from pages.charts.words import Words
from pages.plan import detail, dry_run, form, heatmap, misfit, names, page_links, presets, published, serving
from pages.plan.form import ROW
from pages.plan.found import TOP, Found, as_zip
from pages.plan.request import DEFAULT, Request, Serving, of_link, serving_of_link, serving_to_link, to_link
from pages.plan.searches import planned, searched
from pages.shared import drawing
from pages.shared.figures import Figure, as_html
from pages.shared.frame import LANG, inert, say, view
from pages.shared.predicted import peaks
from pages.shared.service import Service
from pages.shared.subprocesses import run_in_worker

_KEPT = (LANG, heatmap.MAP, dry_run.DRY)  # parameters of the link that are not part of the request


def show(service: Service) -> None:
    words = say()
    st.html(f'<h1 class="ss-unseen">{words("Plan")}</h1>')
    request, serves = _read()
    with st.sidebar:
        form.draw(request, serves)
    _keep(request, serves)
    if serves is None:
        presets.draw(request)
        _train(service, request, words)
    else:
        _serve(service, request, serves, words)


def _serve(service: Service, request: Request, serves: Serving, words: Words) -> None:
    try:
        with st.spinner(words("Comparing all layouts of {count} devices", count=f"{request.ranks:,}")):
            table = serving.served(request, serves)
    except RequestError as error:
        _refuse(error, words)
        return
    serving.draw(service, serving.Asked(request, serves, _row(len(table))), _choose)


def _refuse(error: RequestError, words: Words) -> None:
    refusal = inert(words.sentence(error.sentence))
    st.error(words("{sentence}.", sentence=refusal[:1].upper() + refusal[1:].removesuffix(".")), icon=":material/rule:")


def _train(service: Service, request: Request, words: Words) -> None:
    try:
        with st.spinner(words("Comparing all layouts of {count} devices", count=f"{request.ranks:,}"), show_time=True):
            row = _row(searched(request).count)
            plan = planned(request, row)
    except RequestError as error:
        _refuse(error, words)
        heatmap.draw(request)
        return
    st.markdown(f"## {_headline(request, plan, row, words)}", anchors=False)
    with st.container(horizontal=True, gap="small", vertical_alignment="bottom"):
        _chooser(plan, row, words)
        page_links.to_lab(service, plan.spec(row), plan.device, words)
        page_links.to_compare(service, plan.spec(row), words)
    drawing.heading(_place(plan, row, words), f"{plan.layout(row)['layout']} · {names.levers(plan, row, words)}")
    st.html(as_html(_figures(plan, row, words)))
    _bill(request, plan, row, words)
    misfit.draw(request, plan, row, words)
    with st.grid(columns=2, min_column_width=drawing.CHART_PX, gap="medium") as grid:
        with grid.cell():
            drawing.show(front(request, row, view()), "plan-front", on_rank=lambda point: _choose(point or 0))
        with grid.cell():
            _stages(request, row, words)
    detail.draw(plan, row)
    _table(request, plan, row, words)
    heatmap.draw(request)
    published.draw(request)


def _stages(request: Request, row: int, words: Words) -> None:
    try:
        drawing.show(stages(request, row, view()), "plan-stages")
    except RequestError as error:  # its schedule is too long for stage-by-stage memory, though the search has its peak
        _refuse(error, words)


# --------------------------------------------------------------------------------------------------------- the request


def _read() -> tuple[Request, Serving | None]:
    link = st.query_params.to_dict()
    try:
        return of_link(link), serving_of_link(link)
    except RequestError as error:
        st.warning(
            say().together(inert(say().sentence(error.sentence)), say()("The defaults are shown instead.")),
            icon=":material/link_off:",
        )
        return DEFAULT, None


def _keep(request: Request, serves: Serving | None) -> None:
    """Write the request into the link, and remove its other parameters."""
    held = st.query_params.to_dict()
    wanted = to_link(request) | serving_to_link(serves) | {name: held[name] for name in (*_KEPT, ROW) if name in held}
    if held != wanted:
        st.query_params.from_dict(wanted)


def _row(count: int) -> int:
    """The number of the layout that is shown: the link's, or the best."""
    written = st.query_params.get(ROW, "0")
    row = int(written) if written.isascii() and written.isdigit() and len(written) < 9 else 0
    return row if row < count else 0


def _choose(row: int) -> None:
    """A callback."""
    if row:
        st.query_params[ROW] = str(row)
    else:
        st.query_params.pop(ROW, None)


def _chooser(plan: Found, row: int, words: Words) -> None:
    """A select box for the layout, as for clicks on points: the fastest layouts and the Pareto front."""
    best = range(min(TOP, plan.count))
    baseline = set() if plan.baseline is None else {plan.baseline}
    rows = sorted({*best, *plan.layouts.index[plan.layouts["pareto"]].tolist(), row, *baseline})

    def named(row: int) -> str:
        r = plan.layout(row)
        size, time = in_bytes(int(r["memory_bytes"])), charts.seconds(float(r["step_s"]), words)
        return f"{names.brief(plan, row, words)} · {size} · {time}"

    key = "plan/row"
    st.session_state[key] = row
    st.selectbox(
        words("Layout"), rows, key=key, format_func=named, on_change=lambda: _choose(st.session_state[key]), width=420,
        help=words("The fastest layouts and those on the Pareto front. Click a point of the chart to choose any other."),
    )  # fmt: skip


# ------------------------------------------------------------------------------------------------------------ the answer


def _headline(request: Request, plan: Found, row: int, words: Words) -> str:
    values = {"model": names.model(request, words), "ranks": f"{request.ranks:,}", "device": inert(plan.device.name)}
    values["layout"] = plan.layout(row)["layout"]
    if row < plan.feasible:
        return words("{model} on {ranks} × {device}: {layout} fits", **values)
    if plan.feasible:
        return words("{model} on {ranks} × {device}: {layout} does not fit", **values)
    return words("{model} on {ranks} × {device}: no layout fits", **values)


def _place(plan: Found, row: int, words: Words) -> str:
    all_, fitting = f"{plan.count:,}", f"{plan.feasible:,}"
    if row >= plan.feasible:
        return words("One of the {count} layouts that do not fit", count=f"{plan.count - plan.feasible:,}")
    if not row:
        return words("The fastest of the {count} layouts that fit, of {all}", count=fitting, all=all_)
    return words("Number {place} of the {count} layouts that fit, of {all}", place=f"{row + 1:,}", count=fitting, all=all_)


def _figures(plan: Found, row: int, words: Words) -> list[Figure]:
    r = plan.layout(row)
    share = float(r["memory_bytes"]) / plan.device.memory_bytes
    flops = significant(float(r["tflops_per_device"]))
    return [
        Figure(
            words("Memory"),
            in_bytes(int(r["memory_bytes"])),
            words(
                "{share} of the device; {reserve} are kept free", share=percent(share), reserve=in_bytes(int(r["reserve_bytes"]))
            ),
        ),
        Figure(
            words("Step time"),
            charts.seconds(float(r["step_s"]), words),
            words("for {count} sequences", count=f"{plan.plan.global_batch:,}"),
        ),
        Figure(words("Speed"), short(float(r["tokens_per_second"]), words), words("tokens a second, of all devices")),
        Figure("MFU", percent(float(r["mfu"])), words("{tflops} TFLOP/s a device", tflops=flops)),
        Figure(words("Bubble"), percent(float(r["bubble"])), words("of the pipeline's total time")),
        Figure(
            words("Traffic"),
            in_bytes(int(sum(r[f"{axis}_bytes"] for axis in AXES))),
            words("sent by the busiest rank per step"),
        ),
    ]


def _bill(request: Request, plan: Found, row: int, words: Words) -> None:
    """What training on the request's tokens takes with this layout."""
    bill = request.bill(float(plan.layout(row)["tokens_per_second"]))
    if bill is None:
        return
    parts = [
        words("{days} days", days=short(bill.days, words)),
        words("{hours} device-hours", hours=short(bill.device_hours, words)),
    ]
    if bill.money is not None:
        parts.append(words("{money} at {price} an hour", money=short(bill.money, words), price=f"{request.price:g}"))
    if bill.megawatt_hours is not None:
        energy = short(bill.megawatt_hours, words)
        parts.append(words("{energy} MWh at {watts} W a device", energy=energy, watts=f"{request.watts:g}"))
    took = words("{tokens} tokens with this layout take {parts}.", tokens=short(request.tokens, words), parts=" · ".join(parts))
    st.markdown(took)


@st.cache_data(max_entries=64, show_spinner=False)
def front(request: Request, row: int, view: View) -> Drawing:
    plan = planned(request, row)
    device = plan.device
    return drawing.packed(
        charts.front(plan.layouts, plan.count, plan.feasible, device.memory_bytes, device.name, row, look(view))
    )


@st.cache_data(max_entries=64, show_spinner=False)
def stages(request: Request, row: int, view: View) -> Drawing:
    plan = planned(request, row)
    held = [{name: peak.bytes[name] for name in CATEGORIES} for peak in peaks(plan.spec(row)).peaks]
    reserve = int(plan.layout(row)["reserve_bytes"])
    return drawing.packed(charts.stages(held, plan.device.memory_bytes, reserve, plan.device.name, look(view)))


# ------------------------------------------------------------------------------------------------------------- the table


def _table(request: Request, plan: Found, row: int, words: Words) -> None:
    rows = sorted({*range(min(TOP, plan.count)), row})
    shown = plan.layouts.loc[rows]
    counts = {"count": min(TOP, len(shown)), "all": f"{plan.count:,}"}
    if plan.feasible:
        title = words("The fastest {count} of {all}; select a row to see it", **counts)
    else:
        title = words("None fits; the smallest {count} of {all}: select a row to see it", **counts)
    drawing.heading(words("Best layouts"), title)

    def picked() -> None:
        chosen = st.session_state["plan-table"]["selection"]["rows"]
        _choose(rows[chosen[0]] if chosen else 0)

    table = _readable(shown, rows, words)
    st.dataframe(
        table,
        hide_index=True,
        width="stretch",
        height=318,
        column_config={name: head for name, head in _heads(words).items() if name in table},
        key="plan-table",
        on_select=picked,
        selection_mode="single-row",
        alt=words("Best layouts"),
    )
    st.download_button(
        words("All {count} layouts as CSV, zipped", count=f"{plan.count:,}"),
        data=lambda: run_in_worker(as_zip, request),
        file_name="shardscope-plan.csv.zip",
        mime="application/zip",
        icon=":material/download:",
        on_click="ignore",
    )


def _readable(layouts: pd.DataFrame, rows: list[int], words: Words) -> pd.DataFrame:
    """The table of layouts with names, narrow enough for a page of 1280 pixels without scrolling."""
    table = pd.DataFrame(
        {
            "place": [row + 1 for row in rows],
            "layout": layouts["layout"].tolist(),
            "schedule": [
                names.pipeline(str(code), chunks, split, words) if pp > 1 else "–"
                for code, chunks, split, pp in zip(
                    *(layouts[name] for name in ("schedule", "chunks", "split", "pp")), strict=True
                )
            ],
            "memory": (layouts["memory_bytes"] / 2**30).tolist(),
            "step": layouts["step_s"].tolist(),
            "mfu": (100 * layouts["mfu"]).tolist(),
            "bubble": (100 * layouts["bubble"].clip(lower=0)).tolist(),  # a sum of floats can be slightly below 0
            "batch": [f"{m} × {b}" for m, b in zip(layouts["microbatches"], layouts["microbatch_size"], strict=True)],
            "zero": [
                f"{zero} × {groups}" if groups > 1 else str(zero)
                for zero, groups in zip(layouts["zero"], layouts["zero_replicas"], strict=True)
            ],
            "sequence": ["✓" if parallel else "–" for parallel in layouts["sequence_parallel"]],
            "recompute": [
                recompute(str(kind), count, 1, words)
                for kind, count in zip(layouts["recompute"], layouts["recompute_layers"].tolist(), strict=True)
            ],
        }
    )
    if layouts["fits"].nunique() > 1:  # otherwise it is in the headline
        return table.drop(columns="bubble").assign(fits=["✓" if fits else "–" for fits in layouts["fits"]])
    return table


def _heads(words: Words) -> dict[str, Any]:
    number, text = st.column_config.NumberColumn, st.column_config.TextColumn
    return {
        "place": number(words("no."), width=40),
        "layout": text(words("layout"), width=114),
        "schedule": text(words("schedule"), width=136),
        "memory": number("GiB", format="%.1f", width=50, help=words("Memory of the fullest device.")),
        "step": number(words("step time (s)"), format="%.3f", width=60),
        "mfu": number("MFU", format="%.1f%%", width=56, help=words("Model FLOPs utilization: of the device's peak.")),
        "bubble": number(words("bubble"), format="%.1f%%", width=58, help=words("Of the pipeline's total time.")),
        "batch": text(words("batch"), width=58, help=words("Microbatches of a step: how many, and of how many sequences each.")),
        "zero": text(
            "ZeRO", width=48, help=words("ZeRO stage. 3 × 4: hybrid sharding; 4 groups of ranks shard, and hold the same.")
        ),
        "sequence": text("SP", width=36, help=words("Sequence parallel")),
        "recompute": text(words("recompute"), width=130),
        "fits": text(words("fits"), width=50),
    }
