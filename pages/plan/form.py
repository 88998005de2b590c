"""The form of a plan. The link has the request; widgets show it, and write changes to the link."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from functools import partial
from typing import Any

import streamlit as st

from engine import catalog
from engine.devices import DEVICES, DeviceSpec, device, device_names
from engine.imports import Imported
from engine.papers.accounting import ACCOUNTINGS
from engine.planner.candidates import MOST
from engine.planner.frameworks import NAMES
from engine.predict.speed.rates import Assumptions
from engine.spec import ModelSpec, RequestError, sentence
from pages.charts.names import attentions
from pages.charts.units import short
from pages.charts.words import Words
from pages.plan.request import (
    AUTOMATIC,
    CALIBRATED,
    DEFAULT,
    FOR,
    MOST_RATE,
    MOST_RESERVE,
    MOST_TOKENS,
    OF_RESERVE,
    OPTIONAL,
    OWN,
    OWN_FIELDS,
    SERVING,
    Request,
    Serving,
    figures_of,
    own_to_link,
    usual_batch,
)
from pages.shared import model_file, model_parts
from pages.shared.frame import inert, labelled, say
from pages.shared.link_numbers import shortest_text
from pages.shared.links import model_of_link, model_to_link

ROW = "row"  # the link's parameter: the number of the layout that is shown
_UPLOAD, _WRONG, _WRONG_PART = "plan/upload", "plan/wrong-device", "plan/wrong-part"
_OF_SERVING = tuple(known.name for known in fields(Serving))
_LEAST = 0.001  # the least value of a device's figure, in its unit


def draw(request: Request, serving: Serving | None) -> None:
    """`serving`: its settings; None if the model is trained."""
    words = say()
    _choose_use(serving, words)
    _draw_model(request, words)
    st.markdown(f"##### {words('Devices')}", anchors=False)
    names = {name: name for name in device_names()} | {OWN: words("custom device")}
    _select(words("Device"), list(names), request.device, "device", names, headed=True)
    if request.device == OWN:
        _own(request, words)
    else:
        st.caption(_device_figures(request.hardware, words))
    left, right = st.columns(2, gap="xsmall", wrap=False)
    with left:
        _number(words("Number"), request.ranks, 1, "ranks")
    if serving is None:
        with right:
            _number(words("Global batch"), request.batch, 1, "batch", words("Sequences per step, all devices together."))
        with st.expander(words("Sequence, precision, memory model")):
            _number(words("Sequence length (0: the model's)"), request.seq, 0, "seq")
            _select(words("Precision"), ["bf16", "fp32"], request.precision, "precision")
            _select(words("Attention"), list(attentions(words)), request.attention, "attention", attentions(words))
            _select(words("Memory model"), list(ACCOUNTINGS), request.accounting, "accounting", _accounts(words))
            _reserve(request, words)
            frameworks: dict[str, str] = {"": words("all")} | dict(NAMES.items())
            _select(words("Only layouts of"), list(frameworks), request.only, "only", frameworks)
        with st.expander(words("What a training costs")):
            _cost(request, words)
    else:
        with right:
            _select(words("Precision"), ["bf16", "fp32"], request.precision, "precision")
        _reserve(request, words)
        _ask_serving(serving, request, words)
    with st.expander(words("Hardware efficiency")):
        _assumed(request.assumed, words)


def _draw_model(request: Request, words: Words) -> None:
    st.markdown(f"##### {words('Model')}", anchors=False)
    _choose_model(request, words)
    shape = request.spec
    described = words(
        "{parameters} parameters, sequences of {seq} tokens",
        parameters=short(shape.parameters(), words),
        seq=f"{shape.seq:,}",
    )
    if shape.experts:
        active = short(shape.active_parameters(), words)
        described = words("{model}, of which a token goes through {active}", model=described, active=active)
    st.caption(described)
    model_parts.draw_fields(_parts(model_of_link(request.model)), words)
    if wrong := st.session_state.pop(_WRONG_PART, None):
        st.error(words("{sentence}.", sentence=inert(words.sentence(wrong))), icon=":material/error:")
    model_file.draw("plan", _take, words)


def _choose_model(request: Request, words: Words) -> None:
    """The list is searched by typing, so makers are in the names too."""
    makers = {"open data": words("open data"), "others": words("others"), "encoders": words("encoders"), "": words("to run here")}
    names = {name: f"{name} · {makers.get(maker, maker)}" for maker, models in catalog.MAKERS.items() for name in models}
    own = {} if request.is_named else {request.model: words("custom model")}
    first_published = {name: label for name, label in names.items() if catalog.maker_of(name)}
    _select(words("Model"), [*own, *first_published, *catalog.MAKERS[""]], request.model, "model", own | names, headed=True)


def _parts(shape: ModelSpec) -> model_parts.Fields:
    """Parts of the model that is planned for. A change makes it a custom model."""

    def key(name: str, value: Any, named: bool) -> str:
        st.session_state[f"plan/part/{name}"] = value
        return labelled(f"plan/part/{name}") if named else f"plan/part/{name}"

    def moved(name: str) -> None:
        value = st.session_state[f"plan/part/{name}"]
        if value is None:  # a part as the family has it, or an empty field
            value = ModelSpec.model_fields[name].default
        try:
            changed = ModelSpec.model_validate(shape.model_dump() | {name: value})
        except RequestError as error:
            st.session_state[_WRONG_PART] = error.sentence
            return
        st.query_params["model"] = model_to_link(changed)
        st.query_params.pop(ROW, None)

    return model_parts.Fields("plan-parts", partial(getattr, shape), key, moved)


def _take(found: Imported) -> None:
    """Plan for the model of a file; for as many devices and sequences as it says, if it does. A callback."""
    if found.model is None:
        raise RequestError(sentence("the file does not say what the model is"))
    st.query_params["model"] = model_to_link(found.model)
    for name in ("seq", ROW):
        st.query_params.pop(name, None)
    if found.seq is not None:
        st.query_params["seq"] = str(found.seq)
    if found.layout is not None and found.workload is not None:
        workload = found.workload
        st.query_params["ranks"] = str(found.layout.ranks)
        st.query_params["batch"] = str(workload.microbatches * workload.microbatch_size * found.layout.dp)


def _choose_use(serving: Serving | None, words: Words) -> None:
    key = labelled("plan/for")
    st.session_state[key] = "training" if serving is None else SERVING
    uses = {"training": words("Training"), SERVING: words("Serving")}
    st.segmented_control(
        words("Use"), list(uses), key=key, format_func=uses.__getitem__, on_change=_use_chosen, required=True,
        label_visibility="collapsed", width="stretch",
    )  # fmt: skip


def _use_chosen() -> None:
    """A callback."""
    for name in (ROW, FOR, *_OF_SERVING):
        st.query_params.pop(name, None)
    if st.session_state["plan/for"] == SERVING:
        st.query_params[FOR] = SERVING


def _ask_serving(serving: Serving, request: Request, words: Words) -> None:
    st.markdown(f"##### {words('Sequences')}", anchors=False)
    left, right = st.columns(2, gap="xsmall", wrap=False)
    with left:
        _number(
            words("Tokens of each"), serving.length or request.spec.seq, 1, "length",
            words("Prompt and answer together; their KV cache is kept until the answer ends."),
        )  # fmt: skip
    with right:
        _number(
            words("Concurrent"), serving.sequences, 0, "sequences", words("Total of all replicas; 0: as many as fit."),
        )  # fmt: skip


def _reserve(request: Request, words: Words) -> None:
    automatic = request.reserve == AUTOMATIC
    _fraction(
        words("Reserve (GiB)"), None if automatic else request.reserve, "reserve", MOST_RESERVE,
        words(
            "Memory of every device that tensors leave free. Empty: the CUDA context, NCCL's buffers, cuBLAS's workspace and "
            "fragmentation, for each layout."
        ),
        words("automatic"),
    )  # fmt: skip


def _cost(request: Request, words: Words) -> None:
    """Numbers that are 0 in the request are empty fields."""
    _fraction(words("Tokens to train on"), request.tokens or None, "tokens", MOST_TOKENS, words("Such as 3e11, or 300000000000."))
    _fraction(words("Price of a device for an hour"), request.price or None, "price", MOST_RATE)
    _fraction(words("Watts of a device, with its share of the node"), request.watts or None, "watts", MOST_RATE)


def _fraction(label: str, value: float | None, name: str, most: float, help_text: str | None = None, empty: str = "") -> None:
    """A number that may be left out."""
    key = f"plan/{name}"
    st.session_state[key] = value
    st.number_input(
        label, 0.0, most, None, key=key, format="%g", help=help_text, placeholder=empty, on_change=_moved, args=(name,)
    )


def _accounts(words: Words) -> dict[str, str]:
    return {
        "engine": words("this engine, exact to the byte"),
        "megatron-core": words("Megatron Core, as its kernels take it"),
        "korthikanti2022": "Korthikanti et al. 2022",
        "zero2020": "Rajbhandari et al. 2020 (ZeRO)",
    }


def _device_figures(device: DeviceSpec, words: Words) -> str:
    return words(
        "{memory} GB, {flops} TFLOP/s bf16, {intra} GB/s in a node of {size}, {inter} GB/s between nodes",
        memory=f"{device.memory_bytes / 1e9:g}",
        flops=f"{device.bf16_flops / 1e12:g}",
        intra=f"{device.intra_bandwidth / 1e9:g}",
        size=device.node_size,
        inter=f"{device.inter_bandwidth / 1e9:g}",
    )


# ---------------------------------------------------------------------------------------------------------- the widgets


def _select(
    label: str, options: list[str], value: str, name: str, names: Mapping[str, str] | None = None, headed: bool = False
) -> None:
    """`headed`: a heading has the same text as `label`, so the label is only for screen readers."""
    key = f"plan/{name}"
    st.session_state[key] = value
    named = names or dict(zip(options, options, strict=True))
    st.selectbox(
        label, options, key=labelled(key), format_func=named.__getitem__, on_change=_moved, args=(name,),
        label_visibility="collapsed" if headed else "visible",
    )  # fmt: skip


def _number(label: str, value: int, least: int, name: str, help_text: str | None = None) -> None:
    key = f"plan/{name}"
    st.session_state[key] = value
    st.number_input(label, least, MOST, key=key, help=help_text, on_change=_moved, args=(name,))


def _moved(name: str) -> None:
    """Write a control's value to the link, from which the page is drawn. A callback."""
    value = st.session_state[f"plan/{name}"]
    if value is None and name in OPTIONAL:
        st.query_params.pop(name, None)
        st.query_params.pop(ROW, None)
        return
    if value is None:  # an empty field gets its default
        value = 0 if name in _OF_SERVING else getattr(DEFAULT, name)
    if name == "device" and value == OWN:
        known = st.query_params.get("device", DEFAULT.device)
        st.query_params["own"] = own_to_link(figures_of(device(known if known in device_names() else DEFAULT.device)))
    written = str(int(value)) if isinstance(value, bool) else shortest_text(value) if isinstance(value, float) else str(value)
    st.query_params[name] = written
    if name == "ranks" and (batch := st.session_state.get("plan/batch")):  # a batch for 1,024 devices is none for 8
        st.query_params["batch"] = str(usual_batch(int(batch), int(value)))
    st.query_params.pop(ROW, None)


# ------------------------------------------------------------------------------------------------ the user's own device


def _own(request: Request, words: Words) -> None:
    st.session_state["plan/called"] = request.called
    st.text_input(
        words("Name"), key="plan/called", max_chars=60, placeholder=words("optional"), on_change=_moved, args=("called",)
    )
    labels = {
        "memory_bytes": words("Memory (GB)"),
        "bf16_flops": words("bf16 (TFLOP/s)"),
        "fp32_flops": words("fp32 (TFLOP/s)"),
        "memory_bandwidth": words("Memory (GB/s)"),
        "intra_bandwidth": words("In a node (GB/s)"),
        "inter_bandwidth": words("Between (GB/s)"),
        "intra_latency": words("In a node (µs)"),
        "inter_latency": words("Between (µs)"),
        "node_size": words("In a node"),
        "reachable": words("Share of peak reached in bf16"),
        "fp32_reachable": words("Share of peak reached in fp32"),
        "context_bytes": words("CUDA context (MiB)"),
        "workspace_bytes": words("cuBLAS workspace (MiB)"),
        "pair_communicator_bytes": words("NCCL, a pair (MiB)"),
        "communicator_bytes": words("NCCL, a group (MiB)"),
        "fragmentation": words("Fragmentation, share of the tensors"),
    }
    helps: dict[str, Any] = {name: words.described(field.description or "") for name, field in DeviceSpec.model_fields.items()}
    values = dict(zip(OWN_FIELDS, request.own, strict=True))
    for row in (("memory_bytes", "memory_bandwidth"), ("bf16_flops", "fp32_flops"), ("intra_bandwidth", "inter_bandwidth")):
        _own_row(row, values, labels, helps)
    _own_row(("intra_latency", "inter_latency"), values, labels, helps)
    _own_row(("reachable", "fp32_reachable"), values, labels, helps)
    _own_row(("node_size",), values, labels, helps)
    _own_row(("context_bytes", "workspace_bytes"), values, labels, helps)
    _own_row(("pair_communicator_bytes", "communicator_bytes"), values, labels, helps)
    _own_row(("fragmentation",), values, labels, helps)
    for name in CALIBRATED:
        st.session_state[f"plan/own/{name}"] = values[name]
    st.file_uploader(
        words("Or a JSON file with these figures"), type="json", key=_UPLOAD, on_change=_uploaded, max_upload_size=1,
        help=words("The fields of engine.devices.DeviceSpec, in bytes, FLOP/s, bytes/s and seconds."),
    )  # fmt: skip
    if wrong := st.session_state.get(_WRONG):
        file, error = wrong
        st.error(words("{file}: {error}.", file=inert(file), error=inert(words.sentence(error))), icon=":material/error:")


def _own_row(names: tuple[str, ...], values: Mapping[str, float], labels: Mapping[str, str], helps: Mapping[str, str]) -> None:
    for column, name in zip(st.columns(len(names), gap="xsmall", wrap=False), names, strict=True):
        key = f"plan/own/{name}"
        st.session_state[key] = values[name]
        least = 1.0 if name == "node_size" else 0.0 if name.endswith("latency") or name in OF_RESERVE else _LEAST
        with column:
            most = 1.0 if name.endswith("reachable") or name == "fragmentation" else None
            st.number_input(labels[name], least, most, key=key, format="%g", help=helps[name], on_change=_own_moved)


def _own_moved() -> None:
    """Write the user's own device to the link. An empty field gets the figure of the default device. A callback."""
    known = dict(zip(OWN_FIELDS, figures_of(DEVICES[DEFAULT.device]), strict=True))
    held = {name: st.session_state[f"plan/own/{name}"] for name in OWN_FIELDS}
    st.query_params["own"] = own_to_link(tuple(known[name] if value is None else value for name, value in held.items()))
    st.query_params.pop(ROW, None)


def _uploaded() -> None:
    """A callback."""
    st.session_state.pop(_WRONG, None)
    if (file := st.session_state[_UPLOAD]) is None:
        return
    try:
        device = DeviceSpec.read_json(file.getvalue())
    except RequestError as error:
        st.session_state[_WRONG] = (file.name, error.sentence)
        return
    st.query_params["own"], st.query_params["called"] = own_to_link(figures_of(device)), device.name
    st.query_params.pop(ROW, None)


# ------------------------------------------------------------------------------------------------------- assumptions


def _assumed(assumed: Assumptions, words: Words) -> None:
    labels = {
        "matmul_efficiency": words("Matrix products, share of the device's best"),
        "attention_efficiency": words("Attention matrix products, share of peak FLOP/s"),
        "memory_efficiency": words("Norms and softmax, share of memory bandwidth"),
        "intra_efficiency": words("Links inside a node, share of bandwidth"),
        "inter_efficiency": words("Links between nodes, share of bandwidth"),
        "dp_overlap": words("dp collectives hidden behind backward"),
        "backward_overlap": words("tp collectives beside backward's products"),
        "tp_overlap": words("tp collectives hidden"),
        "launch_us": words("Kernel launch overhead (µs)"),
        "fused_accumulation": words("Fused gradient accumulation"),
        "split_messages": words("Scatter-gather of messages between stages"),
    }
    for name, value in assumed:
        key = f"plan/{name}"
        st.session_state[key] = value
        if isinstance(value, bool):
            st.toggle(labels[name], key=key, on_change=_moved, args=(name,))
        else:
            least = 0.0 if name.endswith("overlap") else 0.05
            least, most, step = (0.0, 200.0, 1.0) if name == "launch_us" else (least, 1.0, 0.01)
            st.slider(labels[name], least, most, step=step, key=key, on_change=_moved, args=(name,))
