"""Plan: a model on so many devices. Does it fit, on which stage not and why; which layouts are best, and what to change."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import streamlit as st

from engine import catalog
from engine.devices import DEVICES
from engine.export.settings import FRAMEWORKS, Framework, settings
from engine.predict.accounting import ACCOUNTINGS
from engine.predict.explain import Reason, label, way_to_fit, why
from engine.predict.memory import memory
from engine.predict.rates import Assumptions
from engine.predict.search import Plan
from engine.spec import RequestError, RunSpec
from pages.charts import plan as charts
from pages.charts.drawing import Drawing
from pages.charts.look import View, look
from pages.charts.units import in_bytes, percent, short, significant
from pages.charts.words import Words
from pages.plan import heatmap
from pages.plan.request import DEFAULT, OWN, OWN_FIELDS, Request, of_link, starting_from, to_link
from pages.shared import drawing, frame, links, ways
from pages.shared.choice import Choice
from pages.shared.figures import Figure, as_html
from pages.shared.frame import LANG
from pages.shared.service import Service

ROW = "row"  # the link's parameter: which layout is looked at
_TOP = 20
# What a framework calls itself, and how its file of settings ends.
_FRAMEWORKS: Mapping[Framework, tuple[str, str]] = {
    "megatron": ("Megatron-LM", "sh"),
    "torchtitan": ("torchtitan", "toml"),
    "deepspeed": ("DeepSpeed", "json"),
}
_CHART_PX = 520
_COLUMNS = (
    "layout", "schedule", "chunks", "microbatches", "microbatch_size", "zero", "sequence_parallel", "recompute", "memory_bytes",
    "step_s", "bubble", "tflops_per_device", "mfu", "tokens_per_second", "pareto",
)  # fmt: skip


def show(service: Service) -> None:
    say = frame.say()
    st.html(f'<h1 class="ss-unseen">{say("Plan")}</h1>')
    request = _read()
    with st.sidebar:
        request = _form(request)
    _keep(request)
    try:
        plan = planned(request)
    except RequestError as error:
        st.error(say.sentence(error.sentence), icon=":material/rule:")
        return
    row = _row(plan)
    st.markdown(f"### {_headline(request, plan, say)}", anchors=False)
    st.html(as_html(_figures(plan, row, say)))
    _fit(plan, row, say)
    with st.grid(columns=2, min_column_width=_CHART_PX, gap="medium") as grid:
        with grid.cell():
            _front(request, plan, row)
        with grid.cell():
            drawing.show(stages(request, row, frame.view()), "plan-stages")
    _table(plan, row, say)
    _detail(service, request, plan, row, say)
    heatmap.draw(request)


# --------------------------------------------------------------------------------------------------------- what is asked


def _read() -> Request:
    try:
        return of_link(st.query_params.to_dict())
    except RequestError as error:
        say = frame.say()
        wrong = say("{sentence}.", sentence=say.sentence(error.sentence))
        st.warning(f"{wrong} {say('The defaults are shown instead.')}", icon=":material/link_off:")
        return DEFAULT


def _keep(request: Request) -> None:
    """Make the link say what is planned. A row belongs to the request it was chosen in."""
    wanted = to_link(request)
    held = {name: value for name, value in st.query_params.to_dict().items() if name not in (ROW, LANG)}
    if held == wanted:
        return
    kept = {LANG: st.query_params[LANG]} if LANG in st.query_params else {}
    if held and ROW in st.query_params and of_link(held) == request:
        kept[ROW] = st.query_params[ROW]
    st.query_params.from_dict(wanted | kept)


def _form(request: Request) -> Request:
    """The widgets, which show what the link asks for, and what they ask for now."""
    say = frame.say()
    changed = dict(vars(request))
    st.markdown(f"##### {say('Model')}", anchors=False)
    changed["model"] = _select(say("Model"), list(catalog.MODELS), request.model, "model")
    shape = catalog.model(changed["model"])
    told = say(
        "{parameters} parameters, sequences of {seq} tokens", parameters=short(shape.parameters(), say), seq=f"{shape.seq:,}"
    )
    st.caption(told)
    st.markdown(f"##### {say('Devices')}", anchors=False)
    names = {name: name for name in DEVICES} | {OWN: say("a device of your own")}
    changed["device"] = _select(say("Device"), list(names), request.device, "device", names)
    left, right = st.columns(2, gap="xsmall")
    changed["ranks"] = _number(left, say("How many"), request.ranks, 1, 1_000_000, "ranks")
    changed["batch"] = _number(right, say("Global batch"), request.batch, 1, 1_000_000, "batch")
    changed["own"] = _own(request) if changed["device"] == OWN else ()
    with st.expander(say("Sequence, precision, accounting")):
        changed["seq"] = _number(st, say("Sequence length (0: the model's)"), request.seq, 0, 1_000_000, "seq")
        changed["precision"] = _select(say("Precision"), ["bf16", "fp32"], request.precision, "precision")
        changed["accounting"] = _select(say("Whose account of memory"), list(ACCOUNTINGS), request.accounting, "accounting")
    with st.expander(say("What is assumed of the hardware")):
        changed["assumed"] = _assumed(request.assumed)
    return Request(**changed)


def _select(label: str, options: list[str], value: str, name: str, names: Mapping[str, str] | None = None) -> str:
    st.session_state[f"plan/{name}"] = value if value in options else options[0]
    format = (names or dict(zip(options, options, strict=True))).__getitem__
    st.selectbox(label, options, key=f"plan/{name}", format_func=format, on_change=_moved, args=(name,))
    return st.session_state[f"plan/{name}"]


def _number(place: object, label: str, value: int, least: int, most: int, name: str) -> int:
    st.session_state[f"plan/{name}"] = min(max(value, least), most)
    place.number_input(label, least, most, key=f"plan/{name}", on_change=_moved, args=(name,))  # type: ignore[attr-defined]
    return int(st.session_state[f"plan/{name}"])


def _moved(name: str) -> None:
    """A control was moved: the link follows, and the rest of the page is drawn from the link. A callback."""
    value = st.session_state[f"plan/{name}"]
    if name == "device" and value == OWN and "own" not in st.query_params:
        known = st.query_params.get("device", DEFAULT.device)
        st.query_params["own"] = "_".join(
            f"{figure:g}" for figure in starting_from(known if known in DEVICES else DEFAULT.device)
        )
    st.query_params[name] = (
        str(int(value)) if isinstance(value, bool) else f"{value:g}" if isinstance(value, float) else str(value)
    )
    st.query_params.pop(ROW, None)


def _own(request: Request) -> tuple[float, ...]:
    say = frame.say()
    labels = {
        "memory_bytes": say("Memory (GB)"),
        "bf16_flops": say("bf16 peak (TFLOP/s)"),
        "fp32_flops": say("fp32 peak (TFLOP/s)"),
        "memory_bandwidth": say("Memory bandwidth (GB/s)"),
        "intra_bandwidth": say("Link inside a node (GB/s, one way)"),
        "inter_bandwidth": say("Link between nodes (GB/s, one way)"),
        "node_size": say("Devices in a node"),
    }
    values = request.own or starting_from(DEFAULT.device)
    found = []
    for (field, _), value in zip(OWN_FIELDS.values(), values, strict=True):
        key = f"plan/own/{field}"
        st.session_state[key] = value
        st.number_input(labels[field], min_value=0.001 if field != "node_size" else 1.0, key=key, on_change=_own_moved)
        found.append(float(st.session_state[key]))
    return tuple(found)


def _own_moved() -> None:
    """A callback."""
    st.query_params["own"] = "_".join(f"{st.session_state[f'plan/own/{field}']:g}" for field, _ in OWN_FIELDS.values())
    st.query_params.pop(ROW, None)


def _assumed(assumed: Assumptions) -> Assumptions:
    say = frame.say()
    labels = {
        "matmul_efficiency": say("Matrix products, of peak FLOP/s"),
        "attention_efficiency": say("Attention's products, of peak FLOP/s"),
        "memory_efficiency": say("Norms and softmax, of memory bandwidth"),
        "intra_efficiency": say("Links inside a node, of their bandwidth"),
        "inter_efficiency": say("Links between nodes, of their bandwidth"),
        "dp_overlap": say("dp collectives hidden behind backward"),
        "tp_overlap": say("tp collectives hidden"),
        "fused_attention": say("Fused attention (scores never in memory)"),
        "split_messages": say("Messages between stages cut over tp"),
    }
    found = {}
    for name, value in assumed:
        key = f"plan/{name}"
        st.session_state[key] = value
        if isinstance(value, bool):
            st.toggle(labels[name], key=key, on_change=_moved, args=(name,))
        else:
            least = 0.0 if name.endswith("overlap") else 0.05
            st.slider(labels[name], least, 1.0, step=0.05, key=key, on_change=_moved, args=(name,))
        found[name] = st.session_state[key]
    return Assumptions(**found)


# ------------------------------------------------------------------------------------------------------------ the answer


@st.cache_resource(max_entries=16, show_spinner=False)
def planned(request: Request) -> Plan:
    """One search for all who ask the same. Raises `RequestError`."""
    return request.plan()


def _row(plan: Plan) -> int:
    """The layout looked at: the link's, or the best."""
    written = st.query_params.get(ROW, "0")
    row = int(written) if written.isascii() and written.isdigit() and len(written) < 9 else 0
    return row if row < len(plan.layouts) else 0


def _choose(row: int) -> None:
    if row:
        st.query_params[ROW] = str(row)
    else:
        st.query_params.pop(ROW, None)


def _headline(request: Request, plan: Plan, say: Words) -> str:
    values = {"model": request.model, "ranks": f"{request.ranks:,}", "device": plan.device.name}
    if plan.feasible:
        return say("{model} on {ranks} × {device}: it fits", **values)
    return say("{model} on {ranks} × {device}: no layout fits", **values)


def _figures(plan: Plan, row: int, say: Words) -> list[Figure]:
    r = plan.layouts.iloc[row]
    rank = say("the best of {count} that fit", count=f"{plan.feasible:,}")
    if row:
        rank = say("number {row} of {count} that fit", row=f"{row + 1:,}", count=f"{plan.feasible:,}")
    if not bool(r["fits"]):
        rank = say("does not fit")
    share = r["memory_bytes"] / plan.device.memory_bytes
    return [
        Figure(say("Layout"), str(r["layout"]), rank),
        Figure(
            say("Step"),
            charts.seconds(float(r["step_s"]), say),
            say("for {count} sequences", count=f"{plan.global_batch:,}"),
        ),
        Figure(say("Speed"), short(float(r["tokens_per_second"]), say), say("tokens a second, all devices together")),
        Figure(
            "MFU", percent(float(r["mfu"])), say("{tflops} TFLOP/s a device", tflops=significant(float(r["tflops_per_device"])))
        ),
        Figure(say("Memory"), in_bytes(int(r["memory_bytes"])), say("{share} of the device", share=percent(float(share)))),
        Figure(say("Bubble"), percent(float(r["bubble"])), say("of the pipeline's total time")),
    ]


def _fit(plan: Plan, row: int, say: Words) -> None:
    """Where it does not fit, on which stage and by how much, and the cheapest way to make it fit."""
    if plan.feasible and bool(plan.layouts["fits"].iloc[row]):
        return
    r = plan.layouts.iloc[row]
    st.warning(
        say(
            "Stage {stage} of {layout} needs {need}, and the device has {size}.",
            stage=int(r["fullest_stage"]),
            layout=r["layout"],
            need=in_bytes(int(r["memory_bytes"])),
            size=in_bytes(plan.device.memory_bytes),
        ),
        icon=":material/memory_alt:",
    )
    way = way_to_fit(plan, plan.spec(row))
    if not way:
        st.markdown(say("No single lever makes it smaller: take more devices, or larger ones."))
        return
    st.markdown(f"**{say('What to change, the cheapest lever first')}**")
    for lever in way:
        st.markdown(f"1. {_said(lever.reason, say)}")
    if not way[-1].fits:
        st.markdown(say("That is all the levers there are, and it still does not fit: take more devices, or larger ones."))


def _said(reason: Reason, words: Words) -> str:
    return words(reason.text, **reason.values)


def _front(request: Request, plan: Plan, row: int) -> None:
    drawing.show(front(request, row, frame.view()), "plan-front", on_rank=lambda point: _choose(point or 0))


@st.cache_data(max_entries=64, show_spinner=False)
def front(request: Request, row: int, view: View) -> Drawing:
    plan = planned(request)
    return drawing.packed(charts.front(plan.layouts, plan.device.memory_bytes, row, look(view)))


@st.cache_data(max_entries=64, show_spinner=False)
def stages(request: Request, row: int, view: View) -> Drawing:
    plan = planned(request)
    peaks = memory(plan.spec(row)).peaks
    return drawing.packed(charts.stages(peaks, plan.device.memory_bytes, plan.device.name, look(view)))


def _table(plan: Plan, row: int, say: Words) -> None:
    shown = plan.layouts.head(max(_TOP, row + 1)).loc[:, list(_COLUMNS)]
    drawing.heading(
        say("Best layouts"),
        say(
            "The fastest {count} of {all} layouts weighed; choose a row to look at it",
            count=min(_TOP, len(shown)),
            all=f"{len(plan.layouts):,}",
        ),
    )
    config: dict[str, Any] = {
        "layout": say("layout"),
        "schedule": say("schedule"),
        "chunks": say("chunks"),
        "microbatches": say("microbatches"),
        "microbatch_size": say("microbatch size"),
        "zero": "ZeRO",
        "sequence_parallel": say("sequence parallel"),
        "recompute": say("recompute"),
        "memory_bytes": say("memory (GiB)"),
        "step_s": st.column_config.NumberColumn(say("step (s)"), format="%.3f"),
        "bubble": say("bubble (%)"),
        "tflops_per_device": st.column_config.NumberColumn("TFLOP/s", format="%.0f"),
        "mfu": say("MFU (%)"),
        "tokens_per_second": st.column_config.NumberColumn(say("tokens/s"), format="localized"),
        "pareto": say("on the front"),
    }
    scaled = shown.assign(
        memory_bytes=(shown["memory_bytes"] / 2**30).round(1),
        bubble=(100 * shown["bubble"]).round(1),
        mfu=(100 * shown["mfu"]).round(1),
    )

    def picked() -> None:
        rows = st.session_state["plan-table"]["selection"]["rows"]
        _choose(rows[0] if rows else 0)

    st.dataframe(
        scaled,
        hide_index=True,
        width="stretch",
        height=300,
        column_config=config,
        key="plan-table",
        on_select=picked,
        selection_mode="single-row",
        alt=say("Best layouts"),
    )
    st.download_button(
        say("All {count} layouts as CSV", count=f"{len(plan.layouts):,}"),
        data=lambda: plan.layouts.to_csv(index=False).encode(),
        file_name="shardscope-plan.csv",
        mime="text/csv",
        icon=":material/download:",
        on_click="ignore",
    )


def _detail(service: Service, request: Request, plan: Plan, row: int, say: Words) -> None:
    """One layout: why it is where it is, and where to go from here."""
    st.markdown(f"### {label(plan, row)}", anchors=False)
    with st.grid(columns=2, min_column_width=_CHART_PX, gap="medium") as grid:
        with grid.cell():
            other = _rival(plan, row)
            drawing.show(parts(request, row, other, frame.view()), "plan-parts")
        with grid.cell():
            _why(plan, row, say)
            _onward(service, plan, row, say)


def _rival(plan: Plan, row: int) -> int | None:
    """What a layout is held against: the best, or for the best the second."""
    if row:
        return 0
    return 1 if len(plan.layouts) > 1 else None


@st.cache_data(max_entries=64, show_spinner=False)
def parts(request: Request, row: int, other: int | None, view: View) -> Drawing:
    plan = planned(request)
    names = ("compute", "tp", "pp", "dp", "update", "idle")
    rows = [row] if other is None else [row, other]
    spent = {label(plan, r): {name: float(getattr(plan.pace, name)[r]) for name in names} for r in rows}
    return drawing.packed(charts.step_parts(spent, look(view)))


def _why(plan: Plan, row: int, say: Words) -> None:
    other = _rival(plan, row)
    if other is None:
        return
    faster, slower = min(row, other), max(row, other)
    drawing.heading(say("Why"), say("What makes the faster one faster"))
    for reason in why(plan, faster, slower):
        st.markdown(f"- {_said(reason, say)}")


def _onward(service: Service, plan: Plan, row: int, say: Words) -> None:
    spec = plan.spec(row)
    code = links.encode(Choice.of(spec, service.texts))
    with st.container(horizontal=True, gap="small"):
        ways.link("lab", say("Open in the Lab"), "science", {"spec": code, "device": plan.device.name})
        with st.popover(say("Launch settings"), icon=":material/rocket_launch:"):
            for framework in FRAMEWORKS:
                _settings(spec, framework, say)
        with st.popover(say("Dry-run it"), icon=":material/deployed_code:"):
            st.caption(say("The worker itself on tensors without contents, on this machine, without a GPU:"))
            st.code(_command(spec), language="bash", wrap_lines=True)


def _settings(spec: RunSpec, framework: Framework, say: Words) -> None:
    name, suffix = _FRAMEWORKS[framework]
    st.download_button(
        say("For {framework}", framework=name),
        data=settings(spec, framework),
        file_name=f"shardscope-{framework}.{suffix}",
        key=f"plan/export/{framework}",
        width="stretch",
        icon=":material/download:",
        on_click="ignore",
    )


def _command(spec: RunSpec) -> str:
    """What does the same at a terminal."""
    layout, workload = spec.layout, spec.workload
    flags = {
        "--model": catalog.name_of(spec.model),
        "--layout": layout.code,
        "--schedule": layout.schedule,
        "--chunks": layout.chunks,
        "--zero": layout.zero,
        "--recompute": layout.recompute,
        "--microbatches": workload.microbatches,
        "--microbatch-size": workload.microbatch_size,
        "--precision": workload.precision,
    }
    sequence = " --sequence-parallel" if layout.sequence_parallel else ""
    return "python -m engine dry-run " + " ".join(f"{flag} {value}" for flag, value in flags.items()) + sequence
