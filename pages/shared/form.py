"""The form of a run, in three depths: size and layout; schedule and workload; levers and everything else.

What the form holds lives in the session, one entry a field, under the field's dotted name. Widgets, links and the
buttons that mend a choice all write there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import streamlit as st
from streamlit.elements.lib.grid_container import GridContainer

from engine import catalog
from engine.schedule import SCHEDULES
from engine.spec import V_SHAPED, RequestError
from engine.text import LARGEST
from pages.charts.names import schedule
from pages.charts.units import short
from pages.charts.words import Words
from pages.shared.choice import DEFAULTS, Bounds, Choice, Problem, description, options
from pages.shared.frame import labelled, say
from pages.shared.texts import Texts
from pages.shared.unfolding import unfolding

CUSTOM = "custom"
SIZES = ("tiny", "small", "medium")
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
    st.session_state[_SIZE] = _size_of(choice)


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


def draw(choice: Choice, texts: Texts, problems: list[Problem]) -> None:
    """The widgets, which hold `choice`. `problems` are said in the part of the form that they are about."""
    with st.container(gap="xsmall"):
        _size_and_layout(choice, say())
        _say([p for p in problems if p.field.startswith(_FIRST_DEPTH)], "first")
    with st.container(gap="xsmall"):
        _schedule_and_workload(choice, say())
        _say([p for p in problems if not p.field.startswith(_FIRST_DEPTH)], "second")
    # What is closed is not drawn: most moves of a control are made with both of them closed, and are the faster for it.
    with unfolding(_set_levers(choice, say()), "form-levers") as levers:
        if levers.open:
            _levers(choice, say())
    with unfolding(_set_rest(choice, say()), "form-rest") as rest:
        if rest.open:
            _the_rest(choice, texts, say())


def _size_and_layout(choice: Choice, say: Words) -> None:
    st.markdown(f"##### {say('Model and layout')}", anchors=False)
    with _row(2):
        families = options("model.family")
        st.selectbox(say("Family"), families, key=_key("model.family"), on_change=_model_named, persist_state="session")
        if st.session_state[_SIZE] != CUSTOM:  # a button may have changed the shape that was named
            st.session_state[_SIZE] = _size_of(choice)
        named, usual = _size_names(say), _sizes(choice["model.family"])
        published = [size for size in [_size_of(choice)] if size not in (*usual, CUSTOM)]  # not to run, so shown only if held
        st.selectbox(
            say("Size"),
            [*usual, *published, CUSTOM],
            key=labelled(_SIZE),
            format_func=lambda size: named.get(size, size),
            on_change=_model_named,
            persist_state="session",
        )
    if st.session_state[_SIZE] == CUSTOM:
        _numbers({"model.layers": say("Layers"), "model.hidden": say("Hidden"), "model.heads": say("Heads")})
        # Two to a row, where six digits have room.
        _numbers({"model.vocab": say("Vocabulary"), "model.seq": say("Sequence")})
        _numbers({"model.ffn": say("MLP width"), "model.kv_heads": say("KV heads")})
        _numbers({"model.head_dim": say("Head width"), "model.decoder_layers": say("Decoder")})
    st.caption(_described(choice, say))
    _numbers({"layout.dp": say("Data (dp)"), "layout.tp": say("Tensor (tp)"), "layout.pp": say("Pipeline (pp)")})
    product = " × ".join(str(choice[f"layout.{axis}"]) for axis in ("dp", "tp", "pp"))
    st.caption(
        say.plural(
            "{product} = **{count} rank**, a process each",
            "{product} = **{count} ranks**, a process each",
            choice.ranks,
            product=product,
        )
    )


def _size_names(say: Words) -> dict[str, str]:
    return {"tiny": say("tiny"), "small": say("small"), "medium": say("medium"), CUSTOM: say("custom")}


def _schedule_and_workload(choice: Choice, say: Words) -> None:
    st.markdown(f"##### {say('Schedule and workload')}", anchors=False)
    with _row(3) as row:
        row.cell(column_span=2).selectbox(
            say("Pipeline schedule"),
            SCHEDULES,
            format_func=lambda code: schedule(code, say),
            key=labelled(_key("layout.schedule")),
            on_change=_schedule_chosen,
            persist_state="session",
        )
        _number("layout.chunks", say("Chunks"))
    st.caption(_what_it_does(choice["layout.schedule"], say))
    _numbers(
        {
            "workload.microbatches": say("Microbatches"),
            "workload.microbatch_size": say("Sequences"),
            "workload.steps": say("Steps"),
        }
    )
    factors = [choice[f] for f in ("layout.dp", "workload.microbatches", "workload.microbatch_size")]
    batch = prod(factors)
    st.caption(
        say.plural(
            "{product} = {count} sequence a step, **{tokens} tokens**",
            "{product} = {count} sequences a step, **{tokens} tokens**",
            batch,
            product=" × ".join(map(str, factors)),
            tokens=f"{batch * choice['model.seq']:,}",
        )
    )
    _toggle("parity", say("Check against the unsharded model"))


def _what_it_does(code: str, say: Words) -> str:
    does = {
        "naive": say("One microbatch in the whole pipeline: all other stages wait."),
        "gpipe": say("All forward passes, then all backward passes: every microbatch's activations are kept at once."),
        "1f1b": say("Fill the pipeline, then one forward for one backward: the same bubble as GPipe, fewer activations kept."),
        "interleaved": say("1F1B over several chunks a stage: a smaller bubble, for more traffic between stages."),
        "zb-h1": say("Backward in two halves; the weights' half waits, and fills what would be bubble."),
        "zb-v": say("Two chunks a stage, down the stages and back up: almost no bubble, for 1F1B's memory."),
        "dualpipe-v": say("Two chunks a stage, with forward passes of one beside backward passes of the other."),
    }
    return does.get(code, "")


def _what_is_shared(zero: int, say: Words) -> str:
    return (
        say("Every replica keeps everything."),
        say("Each replica keeps a share of the optimizer's state."),
        say("Each replica keeps a share of the optimizer's state and of the gradients."),
        say("Each replica keeps a share of everything, and gathers a layer's weights when it needs them."),
    )[zero]


def _levers(choice: Choice, say: Words) -> None:
    _choose("layout.zero", say("ZeRO stage"), (0, 1, 2, 3))
    st.caption(_what_is_shared(choice["layout.zero"], say))
    _toggle("layout.sequence_parallel", say("Sequence parallel"))
    _choose("layout.recompute", say("Recompute in backward"), options("layout.recompute"), names=_recomputes(say))
    _choose("workload.precision", say("Precision"), options("workload.precision"), _precision_chosen)
    if choice["workload.precision"] != DEFAULTS["workload.precision"]:
        _choose("workload.accumulate", say("Add gradients up in"), options("workload.accumulate"))
    _choose("workload.optimizer", say("Optimizer"), options("workload.optimizer"), _optimizer_chosen)
    if choice["workload.optimizer"] == "sgd":
        _number("workload.momentum", say("Momentum"))


def _recomputes(say: Words) -> dict[Any, str]:
    return {"none": say("none"), "selective": say("selective"), "full": say("full")}


def _the_rest(choice: Choice, texts: Texts, say: Words) -> None:
    _text("layout.split", say("Layers of each stage, or of each chunk"), say("as even as can be; or such as 3,1"))
    _numbers(
        {
            "workload.learning_rate": say("Learning rate"),
            "workload.seed": say("Seed"),
            "workload.time_limit": say("Limit (s)"),
        }
    )
    largest = f"{LARGEST:,}"
    st.file_uploader(
        say("Text to train on"),
        type=["txt", "md", "py", "csv", "json"],
        key=_UPLOAD,
        help=say("UTF-8, at most {largest} bytes; it is read as bytes. Otherwise Python's own help texts.", largest=largest),
        on_change=_text_uploaded,
        args=(texts,),
    )
    if refused := st.session_state.get(_REFUSED_TEXT):
        file, error = refused
        st.error(say("{file}: {error}.", file=file, error=say.sentence(error)))
    if name := choice["workload.text"]:
        path = texts.path(name)
        if path:
            size = f"{path.stat().st_size:,}"
            st.caption(say("Training on the uploaded text {name}, {size} bytes.", name=name, size=size))
        else:
            st.caption(say("Training on the uploaded text {name}.", name=name))
        st.button(say("Use the built-in text"), on_click=touch, args=({"workload.text": ""},))
    else:
        st.caption(say("Training on the built-in text: the help texts that come with Python."))
    _text("generate.prompt", say("Then continue this prompt"), say("nothing"))
    if choice["generate.prompt"] or choice["generate.skip_training"]:
        _numbers({"generate.new_tokens": say("New tokens"), "generate.temperature": say("Temperature")})
        _toggle("generate.skip_training", say("Generate without training"))


# ---------------------------------------------------------------------------------------------------------- the widgets


def _numbers(labels: dict[str, str]) -> None:
    """A row of number fields. `labels` by field."""
    with _row(len(labels)):
        for field, label in labels.items():
            _number(field, label)


def _row(fields: int) -> GridContainer:
    """Fields side by side, each as wide as the others: each widget drawn within is a cell of its own."""
    return st.grid(columns=fields, min_column_width=1, wrap=False, gap="xsmall")


def _number(field: str, label: str) -> None:
    bounds, kind = Bounds.of(field), type(DEFAULTS[field])
    st.number_input(
        label,
        min_value=kind(bounds.least),
        max_value=kind(bounds.most),
        step=kind(_STEPS.get(field, 1)),
        format="%g" if kind is float else None,
        key=_key(field),
        help=say().described(description(field)),
        on_change=_number_set,
        args=(field,),
        persist_state="session",
    )


def _choose(
    field: str, label: str, among: Sequence[Any], chosen: Callable[[], None] = touch, names: dict[Any, str] | None = None
) -> None:
    """`names` are what the options are called, if not as they are written."""
    st.segmented_control(
        label,
        among,
        format_func=lambda option: names[option] if names else str(option),
        key=labelled(_key(field)),
        help=say().described(description(field)),
        required=True,
        on_change=chosen,
        persist_state="session",
        width="stretch",
    )


def _toggle(field: str, label: str) -> None:
    st.toggle(label, key=_key(field), help=say().described(description(field)), on_change=touch, persist_state="session")


def _text(field: str, label: str, placeholder: str) -> None:
    help = say().described(description(field))
    st.text_input(label, key=_key(field), placeholder=placeholder, help=help, on_change=touch, persist_state="session")


def _say(problems: list[Problem], where: str) -> None:
    """What does not fit, and for each a row of buttons that make it fit."""
    for n, problem in enumerate(problems):
        st.warning(say()("{sentence}.", sentence=say().sentence(problem.sentence)), icon=":material/rule:")
        with st.container(horizontal=True, gap="xsmall"):
            for fix in problem.fixes:
                key = f"fix-{where}-{n}-{fix.field}-{fix.value}"
                st.button(fix.said(say()), key=key, on_click=touch, args=({fix.field: fix.value},))


def _described(choice: Choice, say: Words) -> str:
    try:
        model = choice.model()
    except RequestError:
        return say("This shape is not possible yet.")
    return say(
        "{layers}, hidden {hidden}, {heads}, vocabulary {vocab}, sequence {seq}: **{parameters} parameters**",
        layers=say.plural("{count} layer", "{count} layers", model.layers),
        hidden=f"{model.hidden:,}",
        heads=say.plural("{count} head", "{count} heads", model.heads),
        vocab=f"{model.vocab:,}",
        seq=f"{model.seq:,}",
        parameters=short(model.parameters(), say),
    )


def _set_levers(choice: Choice, say: Words) -> str:
    """The name of the levers' part of the form, and after it those that are set."""
    said = []
    if zero := choice["layout.zero"]:
        said.append(f"ZeRO {zero}")
    if choice["layout.recompute"] != DEFAULTS["layout.recompute"]:
        said.append(say("recompute {what}", what=_recomputes(say)[choice["layout.recompute"]]))
    said += [choice[f] for f in ("workload.precision", "workload.optimizer") if choice[f] != DEFAULTS[f]]
    said += [say("sequence parallel")] * choice["layout.sequence_parallel"]
    return say("Memory levers: {levers}", levers=say(", ").join(said)) if said else say("Memory levers")


def _set_rest(choice: Choice, say: Words) -> str:
    """The same for everything else: what is not drawn is not forgotten."""
    named = {
        "layout.split": say("split"),
        "workload.learning_rate": say("learning rate"),
        "workload.seed": say("seed"),
        "workload.time_limit": say("time limit"),
        "workload.text": say("own text"),
        "generate.prompt": say("prompt"),
    }
    said = [name for field, name in named.items() if choice[field] != DEFAULTS[field]]
    return say("Everything else: {what}", what=say(", ").join(said)) if said else say("Everything else")


# --------------------------------------------------------------------------------------------------------- on a change


def _sizes(family: str) -> list[str]:
    return [size for size in SIZES if f"{family}-{size}" in catalog.MODELS]


def _size_of(choice: Choice) -> str:
    """What the shape is called: a size to run here, the catalog's name of a published model, or "custom"."""
    name = choice.model_name
    size = name.removeprefix(f"{choice['model.family']}-")
    return size if size in SIZES else name


def _model_named() -> None:
    """A family and a size that has a name set the shape; "custom" starts from the shape that was there."""
    family, size = st.session_state[_key("model.family")], st.session_state[_SIZE]
    known = catalog.MODELS.get(f"{family}-{size}" if size in SIZES else size)
    if size != CUSTOM and (known is None or known.family != family):
        size = st.session_state[_SIZE] = SIZES[0]
        known = catalog.MODELS[f"{family}-{size}"]
    touch({f"model.{name}": value for name, value in known} if known else None)


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
        st.session_state[_REFUSED_TEXT] = (uploaded.name, error.sentence)
