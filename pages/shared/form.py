"""The form of a run, in three depths: size and layout; schedule and workload; levers and everything else.

What the form holds lives in the session, one entry a field, under the field's dotted name. Widgets, links and the
buttons that mend a choice all write there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import streamlit as st

from engine import catalog
from engine.schedule import SCHEDULES
from engine.spec import V_SHAPED, RequestError
from engine.text import LARGEST
from pages.charts.units import plural, short
from pages.shared.choice import DEFAULTS, Bounds, Choice, Problem, description, options
from pages.shared.texts import Texts

CUSTOM = "custom"
SIZES = ("tiny", "small", "medium")
SCHEDULE_NAMES = {
    "naive": "Naive",
    "gpipe": "GPipe",
    "1f1b": "1F1B",
    "interleaved": "Interleaved 1F1B",
    "zb-h1": "Zero bubble H1",
    "zb-v": "Zero bubble V",
    "dualpipe-v": "DualPipe V",
}
_SCHEDULES = {
    "naive": "One microbatch in the whole pipeline: all other stages wait.",
    "gpipe": "All forward passes, then all backward passes: every microbatch's activations are kept at once.",
    "1f1b": "Fill the pipeline, then one forward for one backward: the same bubble as GPipe, fewer activations kept.",
    "interleaved": "1F1B over several chunks a stage: a smaller bubble, for more traffic between stages.",
    "zb-h1": "Backward in two halves; the weights' half waits, and fills what would be bubble.",
    "zb-v": "Two chunks a stage, down the stages and back up: almost no bubble, for 1F1B's memory.",
    "dualpipe-v": "Two chunks a stage, with forward passes of one beside backward passes of the other.",
}
_ZERO = (
    "Every replica keeps everything.",
    "Each replica keeps a share of the optimizer's state.",
    "Each replica keeps a share of the optimizer's state and of the gradients.",
    "Each replica keeps a share of everything, and gathers a layer's weights when it needs them.",
)
_STEPS = {"workload.learning_rate": 0.001, "workload.time_limit": 10.0, "workload.momentum": 0.1, "generate.temperature": 0.1}
_FIRST_DEPTH = ("model.", "layout.dp", "layout.tp", "layout.pp", "layout.split")
_SIZE, _TOUCHED, _UPLOAD, _REFUSED_TEXT = "form/size", "form/touched", "form/upload", "form/refused-text"


def _key(field: str) -> str:
    return f"form/{field}"


# ------------------------------------------------------------------------------------------------- what the form holds


def put(choice: Choice) -> None:
    """Make the form show a choice. Before its widgets are drawn."""
    for field, value in choice.values.items():
        st.session_state[_key(field)] = value
    size = choice.model_name.removeprefix(f"{choice['model.family']}-")
    st.session_state[_SIZE] = size if size in SIZES else CUSTOM


def held() -> Choice | None:
    """What the form holds; None before `put`."""
    if _SIZE not in st.session_state:
        return None
    return Choice({field: st.session_state[_key(field)] for field in DEFAULTS})


def touched() -> bool:
    """Whether the user moved a control since this was last asked."""
    return bool(st.session_state.pop(_TOUCHED, False))


def touch(changes: dict[str, Any] | None = None) -> None:
    """Note that the user moved a control, and write `changes`, field by field. A callback."""
    st.session_state[_TOUCHED] = True
    for field, value in (changes or {}).items():
        st.session_state[_key(field)] = value


# ------------------------------------------------------------------------------------------------------- the three depths


def draw(texts: Texts, problems: list[Problem]) -> None:
    """The widgets. `problems` are said in the part of the form that they are about."""
    choice = held()
    assert choice
    with st.container(gap="xsmall"):
        _size_and_layout(choice)
        _say([p for p in problems if p.field.startswith(_FIRST_DEPTH)], "first")
    with st.container(gap="xsmall"):
        _schedule_and_workload(choice)
        _say([p for p in problems if not p.field.startswith(_FIRST_DEPTH)], "second")
    with st.expander("Memory levers" + _set_levers(choice)):
        _levers(choice)
    with st.expander("Everything else"):
        _the_rest(choice, texts)


def _size_and_layout(choice: Choice) -> None:
    st.markdown("##### Model and layout", anchors=False)
    family, size = st.columns(2, gap="xsmall", wrap=False)
    with family:
        st.selectbox("Family", options("model.family"), key=_key("model.family"), on_change=_model_named, persist_state="session")
    with size:
        sizes = [*_sizes(choice["model.family"]), CUSTOM]
        st.selectbox("Size", sizes, key=_SIZE, on_change=_model_named, persist_state="session")
    if st.session_state[_SIZE] == CUSTOM:
        _numbers({"model.layers": "Layers", "model.hidden": "Hidden", "model.heads": "Heads"})
        _numbers({"model.vocab": "Vocabulary", "model.seq": "Sequence", "model.ffn": "MLP width"})
        _numbers({"model.kv_heads": "KV heads", "model.head_dim": "Head width", "model.decoder_layers": "Decoder"})
    st.caption(_described(choice))
    _numbers({"layout.dp": "Data (dp)", "layout.tp": "Tensor (tp)", "layout.pp": "Pipeline (pp)"})
    product = " × ".join(str(choice[f"layout.{axis}"]) for axis in ("dp", "tp", "pp"))
    st.caption(f"{product} = **{plural(choice.ranks, 'rank')}**, a process each")


def _schedule_and_workload(choice: Choice) -> None:
    st.markdown("##### Schedule and workload", anchors=False)
    schedule, chunks = st.columns([2, 1], gap="xsmall", wrap=False)
    with schedule:
        st.selectbox(
            "Pipeline schedule",
            SCHEDULES,
            format_func=lambda name: SCHEDULE_NAMES.get(name, name),
            key=_key("layout.schedule"),
            on_change=_schedule_chosen,
            persist_state="session",
        )
    with chunks:
        _number("layout.chunks", "Chunks")
    st.caption(_SCHEDULES.get(choice["layout.schedule"], ""))
    _numbers({"workload.microbatches": "Microbatches", "workload.microbatch_size": "Sequences", "workload.steps": "Steps"})
    factors = [choice[f] for f in ("layout.dp", "workload.microbatches", "workload.microbatch_size")]
    batch = prod(factors)
    product = " × ".join(map(str, factors))
    st.caption(f"{product} = {plural(batch, 'sequence')} a step, **{batch * choice['model.seq']:,} tokens**")
    _toggle("parity", "Check against the unsharded model")


def _levers(choice: Choice) -> None:
    _choose("layout.zero", "ZeRO stage", (0, 1, 2, 3))
    st.caption(_ZERO[choice["layout.zero"]])
    _toggle("layout.sequence_parallel", "Sequence parallel")
    _choose("layout.recompute", "Recompute in backward", options("layout.recompute"))
    _choose("workload.precision", "Precision", options("workload.precision"), _precision_chosen)
    if choice["workload.precision"] != DEFAULTS["workload.precision"]:
        _choose("workload.accumulate", "Add gradients up in", options("workload.accumulate"))
    _choose("workload.optimizer", "Optimizer", options("workload.optimizer"), _optimizer_chosen)
    if choice["workload.optimizer"] == "sgd":
        _number("workload.momentum", "Momentum")


def _the_rest(choice: Choice, texts: Texts) -> None:
    _text("layout.split", "Layers of each stage, or of each chunk", "as even as can be; or such as 3,1")
    _numbers({"workload.learning_rate": "Learning rate", "workload.seed": "Seed", "workload.time_limit": "Limit (s)"})
    st.file_uploader(
        "Text to train on",
        type=["txt", "md", "py", "csv", "json"],
        key=_UPLOAD,
        help=f"UTF-8, at most {LARGEST:,} bytes; it is read as bytes. Otherwise Python's own help texts.",
        on_change=_text_uploaded,
        args=(texts,),
    )
    if refused := st.session_state.get(_REFUSED_TEXT):
        st.error(refused)
    if name := choice["workload.text"]:
        path = texts.path(name)
        st.caption(f"Training on the uploaded text {name}" + (f", {path.stat().st_size:,} bytes." if path else "."))
        st.button("Use the built-in text", on_click=touch, args=({"workload.text": ""},))
    else:
        st.caption("Training on the built-in text: the help texts that come with Python.")
    _text("generate.prompt", "Then continue this prompt", "nothing")
    if choice["generate.prompt"] or choice["generate.skip_training"]:
        _numbers({"generate.new_tokens": "New tokens", "generate.temperature": "Temperature"})
        _toggle("generate.skip_training", "Generate without training")


# ---------------------------------------------------------------------------------------------------------- the widgets


def _numbers(labels: dict[str, str]) -> None:
    """A row of number fields. `labels` by field."""
    for column, (field, label) in zip(st.columns(len(labels), gap="xsmall", wrap=False), labels.items(), strict=True):
        with column:
            _number(field, label)


def _number(field: str, label: str) -> None:
    bounds, kind = Bounds.of(field), type(DEFAULTS[field])
    st.number_input(
        label,
        min_value=kind(bounds.least),
        max_value=kind(bounds.most),
        step=kind(_STEPS.get(field, 1)),
        format="%g" if kind is float else None,
        key=_key(field),
        help=description(field),
        on_change=_number_set,
        args=(field,),
        persist_state="session",
    )


def _choose(field: str, label: str, among: Sequence[Any], chosen: Callable[[], None] = touch) -> None:
    st.segmented_control(
        label,
        among,
        key=_key(field),
        help=description(field),
        required=True,
        on_change=chosen,
        persist_state="session",
        width="stretch",
    )


def _toggle(field: str, label: str) -> None:
    st.toggle(label, key=_key(field), help=description(field), on_change=touch, persist_state="session")


def _text(field: str, label: str, placeholder: str) -> None:
    help = description(field)
    st.text_input(label, key=_key(field), placeholder=placeholder, help=help, on_change=touch, persist_state="session")


def _say(problems: list[Problem], where: str) -> None:
    """What does not fit, and for each a row of buttons that make it fit."""
    for n, problem in enumerate(problems):
        st.warning(f"{problem.sentence}.", icon=":material/rule:")
        with st.container(horizontal=True, gap="xsmall"):
            for fix in problem.fixes:
                key = f"fix-{where}-{n}-{fix.field}-{fix.value}"
                st.button(str(fix), key=key, on_click=touch, args=({fix.field: fix.value},))


def _described(choice: Choice) -> str:
    try:
        model = choice.model()
    except RequestError:
        return "This shape is not possible yet."
    return (
        f"{plural(model.layers, 'layer')}, hidden {model.hidden:,}, {plural(model.heads, 'head')}, vocabulary {model.vocab:,}, "
        f"sequence {model.seq:,}: **{short(model.parameters())} parameters**"
    )


def _set_levers(choice: Choice) -> str:
    """The levers that are set, after the name of their part of the form."""
    named = {"layout.zero": "ZeRO {}", "layout.recompute": "recompute {}", "workload.precision": "{}", "workload.optimizer": "{}"}
    said = [text.format(choice[field]) for field, text in named.items() if choice[field] != DEFAULTS[field]]
    said += ["sequence parallel"] * choice["layout.sequence_parallel"]
    return f": {', '.join(said)}" if said else ""


# --------------------------------------------------------------------------------------------------------- on a change


def _sizes(family: str) -> list[str]:
    return [size for size in SIZES if f"{family}-{size}" in catalog.MODELS]


def _model_named() -> None:
    """A family and a size that has a name set the shape; "custom" starts from the shape that was there."""
    family, size = st.session_state[_key("model.family")], st.session_state[_SIZE]
    if size != CUSTOM and size not in _sizes(family):
        size = st.session_state[_SIZE] = SIZES[0]
    known = catalog.MODELS.get(f"{family}-{size}", ())
    touch({f"model.{name}": value for name, value in known})


def _schedule_chosen() -> None:
    """A schedule brings the chunks that it needs."""
    name, chunks = st.session_state[_key("layout.schedule")], st.session_state[_key("layout.chunks")]
    needed = 2 if name in V_SHAPED else max(2, chunks) if name == "interleaved" else 1
    touch({"layout.chunks": needed})


def _precision_chosen() -> None:
    touch({"workload.accumulate": DEFAULTS["workload.accumulate"]})


def _optimizer_chosen() -> None:
    touch({"workload.momentum": DEFAULTS["workload.momentum"]})


def _number_set(field: str) -> None:
    """A field that was emptied takes its default."""
    touch({field: DEFAULTS[field]} if st.session_state[_key(field)] is None else None)


def _text_uploaded(texts: Texts) -> None:
    uploaded = st.session_state[_UPLOAD]
    st.session_state.pop(_REFUSED_TEXT, None)
    if uploaded is None:
        return
    try:
        touch({"workload.text": texts.keep(uploaded.getvalue())})
    except RequestError as error:
        st.session_state[_REFUSED_TEXT] = f"{uploaded.name}: {error}."
