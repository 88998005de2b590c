"""The form of a run, in three depths: size and layout; schedule and workload; everything else.

What the form holds lives in the session, one entry a field, under the field's dotted name. Widgets, links and the
buttons that mend a choice all write there.
"""

from __future__ import annotations

from math import prod
from typing import Any

import streamlit as st

from engine import catalog
from engine.schedule import SCHEDULES
from engine.spec import RequestError
from pages.charts.units import plural, short
from pages.shared.choice import DEFAULTS, Bounds, Choice, Problem, description
from pages.shared.texts import LARGEST, Texts

CUSTOM = "custom"
SIZES = {"tiny": "gpt-tiny", "small": "gpt-small", "medium": "gpt-medium"}
SCHEDULE_NAMES = {"naive": "Naive", "gpipe": "GPipe", "1f1b": "1F1B"}
SCHEDULE_SENTENCES = {
    "naive": "One microbatch in the whole pipeline: all other stages wait.",
    "gpipe": "All forward passes, then all backward passes: every microbatch's activations are kept at once.",
    "1f1b": "Fill the pipeline, then one forward for one backward: the same bubble as GPipe, fewer activations kept.",
}
_STEPS = {"workload.learning_rate": 0.001, "workload.time_limit": 10.0}  # of the fields' + and −, where that is not 1
_SIZE, _TOUCHED, _UPLOAD, _REFUSED_TEXT = "form/size", "form/touched", "form/upload", "form/refused-text"


def _key(field: str) -> str:
    return f"form/{field}"


# ------------------------------------------------------------------------------------------------- what the form holds


def put(choice: Choice) -> None:
    """Make the form show a choice. Before its widgets are drawn."""
    for field, value in choice.values.items():
        st.session_state[_key(field)] = value
    st.session_state[_SIZE] = next((size for size, name in SIZES.items() if name == choice.model_name), CUSTOM)


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


# ---------------------------------------------------------------------------------------------------------- the widgets


def draw(texts: Texts, problems: list[Problem]) -> None:
    """The widgets. `problems` are said beside the fields they are about."""
    with st.container(gap="xsmall"):
        _size_and_layout([p for p in problems if p.field.startswith(("model.", "layout."))])
    with st.container(gap="xsmall"):
        _schedule_and_workload([p for p in problems if p.field.startswith("workload.")])
    with st.expander("Everything else"):
        _the_rest(texts)


def _size_and_layout(problems: list[Problem]) -> None:
    st.markdown("##### Model and layout", anchors=False)
    st.segmented_control(
        "Model size", [*SIZES, CUSTOM], key=_SIZE, required=True, on_change=_size_chosen, persist_state="session", width="stretch"
    )
    if st.session_state[_SIZE] == CUSTOM:
        _numbers({"model.layers": "Layers", "model.hidden": "Hidden", "model.heads": "Heads"})
        _numbers({"model.vocab": "Vocabulary", "model.seq": "Sequence", "model.ffn": "MLP width"})
    choice = held()
    assert choice
    st.caption(_described(choice))
    _numbers({"layout.dp": "Data (dp)", "layout.tp": "Tensor (tp)", "layout.pp": "Pipeline (pp)"})
    product = " × ".join(str(choice[f"layout.{axis}"]) for axis in ("dp", "tp", "pp"))
    st.caption(f"{product} = **{plural(choice.ranks, 'rank')}**, a process each")
    _say(problems)


def _schedule_and_workload(problems: list[Problem]) -> None:
    st.markdown("##### Schedule and workload", anchors=False)
    st.segmented_control(
        "Pipeline schedule",
        SCHEDULES,
        format_func=SCHEDULE_NAMES.__getitem__,
        key=_key("layout.schedule"),
        required=True,
        on_change=touch,
        persist_state="session",
        width="stretch",
    )
    st.caption(SCHEDULE_SENTENCES[st.session_state[_key("layout.schedule")]])
    _numbers({"workload.microbatches": "Microbatches", "workload.microbatch_size": "Sequences", "workload.steps": "Steps"})
    choice = held()
    assert choice
    factors = [choice[f] for f in ("layout.dp", "workload.microbatches", "workload.microbatch_size")]
    batch = prod(factors)
    st.caption(
        f"{' × '.join(map(str, factors))} = {plural(batch, 'sequence')} a step, **{batch * choice['model.seq']:,} tokens**"
    )
    st.toggle(
        "Check against the unsharded model",
        key=_key("parity"),
        help="Runs the same model whole, in one process, and compares every gradient of step 1 and every loss.",
        on_change=touch,
        persist_state="session",
    )
    _say(problems)


def _the_rest(texts: Texts) -> None:
    st.text_input(
        "Layers of each stage",
        key=_key("layout.split"),
        placeholder="as even as can be; or such as 3,1",
        help=description("layout.split"),
        on_change=touch,
        persist_state="session",
    )
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
    if name := st.session_state[_key("workload.text")]:
        path = texts.path(name)
        st.caption(f"Training on the uploaded text {name}" + (f", {path.stat().st_size:,} bytes." if path else "."))
        st.button("Use the built-in text", on_click=touch, args=({"workload.text": ""},))
    else:
        st.caption("Training on the built-in text: the help texts that come with Python.")


def _numbers(labels: dict[str, str]) -> None:
    """A row of number fields. `labels` by field."""
    for column, (field, label) in zip(st.columns(len(labels), gap="xsmall", wrap=False), labels.items(), strict=True):
        bounds, kind = Bounds.of(field), type(DEFAULTS[field])
        column.number_input(
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


def _say(problems: list[Problem]) -> None:
    """What does not fit, and for each a row of buttons that make it fit."""
    for n, problem in enumerate(problems):
        st.warning(f"{problem.sentence}.", icon=":material/rule:")
        with st.container(horizontal=True, gap="xsmall"):
            for fix in problem.fixes:
                st.button(str(fix), key=f"fix-{n}-{fix.field}-{fix.value}", on_click=touch, args=({fix.field: fix.value},))


def _described(choice: Choice) -> str:
    try:
        model = choice.model()
    except RequestError:
        return "This shape is not possible yet."
    return (
        f"{plural(model.layers, 'layer')}, hidden {model.hidden:,}, {plural(model.heads, 'head')}, vocabulary {model.vocab:,}, "
        f"sequence {model.seq:,}: **{short(model.parameters())} parameters**"
    )


# --------------------------------------------------------------------------------------------------------- on a change


def _size_chosen() -> None:
    """A named size sets the shape; "custom" starts from the shape that was there."""
    size = st.session_state[_SIZE]
    shape = dict(catalog.MODELS[SIZES[size]]) if size in SIZES else {}
    touch({f"model.{name}": value for name, value in shape.items()})


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
