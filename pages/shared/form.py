"""The form of a run in three parts: size and layout; schedule and workload; levers and everything else."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import streamlit as st

from engine.families import FAMILIES
from engine.schedule import SCHEDULES
from engine.spec import SCHEDULE_FACTS, RequestError
from engine.text import LARGEST
from engine.topology import AXES
from pages.charts.names import attentions, context_kinds, recomputes, schedule
from pages.charts.units import short
from pages.charts.words import Words
from pages.shared import generating, held, model_parts
from pages.shared.choice import DEFAULTS, Bounds, Choice, Problem, description, options
from pages.shared.frame import inert, say
from pages.shared.held import CUSTOM, SIZE, key_of, model_named, moved, shown, size, size_of, sizes, touch
from pages.shared.levers import set_levers
from pages.shared.texts import Texts
from pages.shared.unfolding import unfolding

_STEPS = {"workload.learning_rate": 0.001, "workload.time_limit": 10.0, "workload.momentum": 0.1, "generate.temperature": 0.1}
_FIRST_PART = ("model.", *(f"layout.{axis}" for axis in AXES), "layout.split")
_UPLOAD, _REFUSED_TEXT = "form/upload", "form/refused-text"


# ------------------------------------------------------------------------------------------------------- the three parts


def draw(choice: Choice, texts: Texts, problems: list[Problem]) -> None:
    """The widgets, which show `choice`. Each of `problems` is shown in its part of the form."""
    words = say()
    # style.css puts parts side by side: a Streamlit container for each row takes time at each rerun.
    with st.container(key="form", gap="xsmall"):
        _size_and_layout(choice, words)
        _say([p for p in problems if p.field.startswith(_FIRST_PART)], "first", words)
        _schedule_and_workload(choice, words)
        _say([p for p in problems if not p.field.startswith(_FIRST_PART)], "second", words)
    # Closed parts are not drawn. Usually both are closed, so reruns are faster.
    with unfolding(_set_levers(choice, words), "form-levers") as levers:
        if levers.open:
            _levers(choice, words)
    with unfolding(_set_rest(choice, words), "form-rest") as rest:
        if rest.open:
            _the_rest(choice, texts, words)


def _size_and_layout(choice: Choice, say: Words) -> None:
    st.markdown(f"##### {say('Model and layout')}", anchors=False)
    st.selectbox(
        say("Family"),
        options("model.family"),
        key=shown("model.family", choice["model.family"]),
        on_change=model_named,
    )
    named, called, usual = _size_names(say), size(), sizes(choice["model.family"])
    published = [size for size in [size_of(choice)] if size not in (*usual, CUSTOM)]  # too large to run: listed only if chosen
    st.selectbox(
        say("Size"),
        [*usual, *published, CUSTOM],
        key=shown(SIZE, called, named=True),
        format_func=lambda size: named.get(size, size),
        on_change=model_named,
    )
    if called == CUSTOM:
        _row(choice, {"model.layers": say("Layers"), "model.hidden": say("Hidden"), "model.heads": say("Heads")}, say)
        # Two in a row, so that six digits have room.
        _row(choice, {"model.vocab": say("Vocabulary"), "model.seq": say("Sequence")}, say)
        _row(choice, {"model.ffn": say("MLP width"), "model.kv_heads": say("KV heads")}, say)
        _row(choice, {"model.head_dim": say("Head width"), "model.decoder_layers": say("Decoder")}, say)
        model_parts.draw(choice, say)
    st.caption(_described(choice, say))
    model_parts.from_file(say)
    _numbers(choice, {"layout.dp": say("Data (dp)"), "layout.tp": say("Tensor (tp)"), "layout.pp": say("Pipeline (pp)")}, say)
    st.caption(
        say.plural(
            "{product} = **{count} rank**, one process each",
            "{product} = **{count} ranks**, one process each",
            choice.ranks,
            product=choice.mesh.product,
        )
    )


def _size_names(say: Words) -> dict[str, str]:
    return {"tiny": say("tiny"), "mini": say("mini"), "small": say("small"), "medium": say("medium"), CUSTOM: say("custom")}


def _schedule_and_workload(choice: Choice, say: Words) -> None:
    st.markdown(f"##### {say('Schedule and workload')}", anchors=False)
    st.selectbox(
        say("Pipeline schedule"),
        SCHEDULES,
        format_func=lambda code: schedule(code, say),
        key=shown("layout.schedule", choice["layout.schedule"], named=True),
        on_change=_schedule_chosen,
    )
    _number(choice, "layout.chunks", say("Chunks"), say)
    st.caption(say.sentence(SCHEDULE_FACTS[choice["layout.schedule"]].summary))
    labels = {
        "workload.microbatches": say("Microbatches"),
        "workload.microbatch_size": say("Sequences"),
        "workload.steps": say("Steps"),
    }
    _numbers(choice, labels, say)
    factors = [choice[f] for f in ("layout.dp", "workload.microbatches", "workload.microbatch_size")]
    batch = prod(factors)
    st.caption(
        say.plural(
            "{product} = {count} sequence per step, **{tokens} tokens**",
            "{product} = {count} sequences per step, **{tokens} tokens**",
            batch,
            product=" × ".join(map(str, factors)),
            tokens=f"{batch * choice['model.seq']:,}",
        )
    )
    _toggle(choice, "parity", say("Check against the unsharded model"), say)


def _what_is_shared(zero: int, say: Words) -> str:
    return (
        say("Every replica keeps all parameters, gradients and optimizer state."),
        say("Each replica keeps a shard of the optimizer's state."),
        say("Each replica keeps a shard of the optimizer's state and of the gradients."),
        say(
            "Each replica keeps a shard of parameters, gradients and optimizer state, and gathers a layer's weights when "
            "it needs them."
        ),
    )[zero]


def _in_groups(groups: int, ranks: int, say: Words) -> str:
    if groups == 1:
        return say("1 is off: ZeRO shards over all of dp × cp = {ranks}.", ranks=ranks)
    return say(
        "dp × cp = {ranks} in {groups} groups. Each group shards, and all groups hold the same.", ranks=ranks, groups=groups
    )


def _levers(choice: Choice, say: Words) -> None:
    _numbers(choice, {"layout.cp": say("Context (cp)")}, say)
    if choice["layout.cp"] != DEFAULTS["layout.cp"]:
        field = "layout.context_parallel"
        _choose(choice, field, say("Attention over cp ranks"), options(field), say, context_kinds(say))
    _choose(choice, "layout.zero", say("ZeRO stage"), (0, 1, 2, 3), say)
    st.caption(_what_is_shared(choice["layout.zero"], say))
    if choice["layout.zero"] or choice["layout.zero_replicas"] != DEFAULTS["layout.zero_replicas"]:
        _number(choice, "layout.zero_replicas", say("Groups that shard (hybrid)"), say)
        st.caption(_in_groups(choice["layout.zero_replicas"], choice["layout.dp"] * choice["layout.cp"], say))
    _toggle(choice, "layout.sequence_parallel", say("Sequence parallel"), say)
    precision, optimizer = "workload.precision", "workload.optimizer"
    _recompute(choice, say)
    _attention(choice, say)
    # Fields that have no effect with another precision or optimizer return to their defaults.
    of_bf16 = ("workload.accumulate", "workload.bf16_optimizer")
    _choose(choice, precision, say("Precision"), options(precision), say, resets=of_bf16)
    if choice[precision] != DEFAULTS[precision]:
        _choose(choice, "workload.accumulate", say("Gradient accumulation in"), options("workload.accumulate"), say)
        _toggle(choice, "workload.bf16_optimizer", say("Optimizer in bf16, without an fp32 copy"), say)
    _choose(choice, optimizer, say("Optimizer"), options(optimizer), say, resets=("workload.momentum",))
    if choice[optimizer] == "sgd":
        _number(choice, "workload.momentum", say("Momentum"), say)
    _number(choice, "workload.loss_chunk", say("Tokens of a chunk of the loss"), say)


def _attention(choice: Choice, say: Words) -> None:
    """The control, and a caption where the choice has no effect."""
    field = "workload.attention"
    _choose(choice, field, say("Attention"), options(field), say, attentions(say))
    position = choice["model.position"] or FAMILIES[choice["model.family"]].position
    if position == "relative":
        st.caption(say("Two-stream attention is always written: torch has no fused operation with relative positions."))
    if position == "buckets":
        st.caption(say("Attention with buckets of distances is always written: torch has no fused operation that learns biases."))


def _recompute(choice: Choice, say: Words) -> None:
    field = "layout.recompute"
    st.selectbox(
        say("Recompute in backward"),
        options(field),
        format_func=recomputes(say).__getitem__,
        key=shown(field, choice[field], named=True),
        help=say.described(description(field)),
        on_change=moved,
        args=(field, {other: DEFAULTS[other] for other in ("layout.recompute_layers", "layout.recompute_every")}),
    )
    if choice[field] == "full":
        labels = {"layout.recompute_layers": say("First layers of a chunk"), "layout.recompute_every": say("Every n-th layer")}
        _row(choice, labels, say)
        st.caption(_which_layers(choice["layout.recompute_layers"], choice["layout.recompute_every"], say))


def _which_layers(first: int, every: int, say: Words) -> str:
    if first:
        return say.plural(
            "The first layer of each chunk is computed again.",
            "The first {count} layers of each chunk are computed again.",
            first,
        )
    if every > 1:
        return say("One in {count} layers of each stage is computed again.", count=every)
    return say("0 and 1: all layers are computed again.")


def _the_rest(choice: Choice, texts: Texts, say: Words) -> None:
    _text(choice, "layout.split", say("Layers of each stage, or of each chunk"), say("as even as possible; or such as 3,1"), say)
    labels = {
        "workload.learning_rate": say("Learning rate"),
        "workload.seed": say("Seed"),
        "workload.time_limit": say("Limit (s)"),
    }
    _row(choice, labels, say)
    largest = f"{LARGEST:,}"
    st.file_uploader(
        say("Training text"),
        type=["txt", "md", "py", "csv", "json"],
        key=_UPLOAD,
        max_upload_size=1,
        help=say("UTF-8, at most {largest} bytes; it is read as bytes. Otherwise the built-in text.", largest=largest),
        on_change=_text_uploaded,
        args=(texts,),
    )
    if refused := st.session_state.get(_REFUSED_TEXT):
        file, error = refused
        st.error(say("{file}: {error}.", file=inert(file), error=inert(say.sentence(error))))
    if name := choice["workload.text"]:
        path = texts.path(name)
        if path:
            size = f"{path.stat().st_size:,}"
            st.caption(say("Training on the uploaded text {name}, {size} bytes.", name=name, size=size))
        else:
            st.caption(say("Training on the uploaded text {name}.", name=name))
        st.button(say("Use the built-in text"), on_click=touch, args=({"workload.text": ""},))
    else:
        st.caption(say("Training on the built-in text: this project's own documentation and code."))
    generating.choose_weights(choice, say)
    _text(choice, "generate.prompt", say("Prompt to continue after training"), say("nothing"), say)
    if choice["generate.prompt"] or choice["generate.skip_training"]:
        _row(choice, {"generate.new_tokens": say("New tokens"), "generate.temperature": say("Temperature")}, say)
        _toggle(choice, "generate.skip_training", say("Generate without training"), say)
    generating.offer(choice, texts, say)


# ---------------------------------------------------------------------------------------------------------- the widgets


def _numbers(choice: Choice, labels: dict[str, str], say: Words) -> None:
    """Number fields. `labels` by field."""
    for field, label in labels.items():
        _number(choice, field, label, say)


def _row(choice: Choice, labels: dict[str, str], say: Words) -> None:
    """Number fields of equal width side by side, where style.css makes no row."""
    with st.grid(columns=len(labels), min_column_width=1, wrap=False, gap="xsmall"):
        _numbers(choice, labels, say)


def _number(choice: Choice, field: str, label: str, say: Words) -> None:
    bounds, kind = Bounds.of(field), type(DEFAULTS[field])
    st.number_input(
        label,
        min_value=kind(bounds.least),
        max_value=kind(bounds.most),
        step=kind(_STEPS.get(field, 1)),
        format="%g" if kind is float else None,
        key=shown(field, choice[field]),
        help=say.described(description(field)),
        on_change=moved,
        args=(field,),
    )


def _choose(
    choice: Choice,
    field: str,
    label: str,
    among: Sequence[Any],
    say: Words,
    names: dict[Any, str] | None = None,
    resets: Sequence[str] = (),
) -> None:
    """`names`: option → name. Without them, options are shown as they are. A change sets `resets` to their defaults."""
    st.segmented_control(
        label,
        among,
        format_func=lambda option: names[option] if names else str(option),
        key=shown(field, choice[field], named=True),
        help=say.described(description(field)),
        required=True,
        on_change=moved,
        args=(field, {other: DEFAULTS[other] for other in resets}),
        width="stretch",
    )


def _toggle(choice: Choice, field: str, label: str, say: Words) -> None:
    st.toggle(label, key=shown(field, choice[field]), help=say.described(description(field)), on_change=moved, args=(field,))


def _text(choice: Choice, field: str, label: str, placeholder: str, say: Words) -> None:
    help = say.described(description(field))
    st.text_input(
        label, key=shown(field, choice[field]), placeholder=placeholder, help=help, on_change=moved, args=(field,)
    )  # fmt: skip


def _say(problems: list[Problem], where: str, say: Words) -> None:
    """The problems, each with a row of buttons that solve it."""
    for n, problem in enumerate(problems):
        st.warning(say("{sentence}.", sentence=inert(say.sentence(problem.sentence))), icon=":material/rule:")
        with st.container(horizontal=True, gap="xsmall"):
            for fix in problem.fixes:
                key = f"fix-{where}-{n}-{fix.field}-{fix.value}"
                st.button(fix.label(say), key=key, on_click=touch, args=({fix.field: fix.value},))


def _described(choice: Choice, say: Words) -> str:
    try:
        model = choice.model()
    except RequestError:
        return say("This model shape is not valid.")
    described = say(
        "{layers}, hidden {hidden}, {heads}, vocabulary {vocab}, sequence {seq}: **{parameters} parameters**",
        layers=say.plural("{count} layer", "{count} layers", model.layers),
        hidden=f"{model.hidden:,}",
        heads=say.plural("{count} head", "{count} heads", model.heads),
        vocab=f"{model.vocab:,}",
        seq=f"{model.seq:,}",
        parameters=short(model.parameters(), say),
    )
    if model.experts:
        active = short(model.active_parameters(), say)
        described = say("{model}, of which a token goes through {active}", model=described, active=active)
    if model.vocab_multiple > 1:
        return say("{model}; padding of the vocabulary is not counted", model=described)
    return described


def _set_levers(choice: Choice, say: Words) -> str:
    """The label of the levers' part: its name and the levers that are set."""
    said = set_levers(choice.__getitem__, say)
    return say("Memory optimizations: {levers}", levers=say(", ").join(said)) if said else say("Memory optimizations")


def _set_rest(choice: Choice, say: Words) -> str:
    """The same for everything else, so that one sees what a closed part contains."""
    named = {
        "layout.split": say("split"),
        "workload.learning_rate": say("learning rate"),
        "workload.seed": say("seed"),
        "workload.time_limit": say("time limit"),
        "workload.text": say("own text"),
        "workload.weights": say("trained weights"),
        "generate.prompt": say("prompt"),
    }
    said = [name for field, name in named.items() if choice[field] != DEFAULTS[field]]
    return say("Advanced: {what}", what=say(", ").join(said)) if said else say("Advanced")


# --------------------------------------------------------------------------------------------------------- on a change


def _schedule_chosen() -> None:
    """Set the number of chunks that the schedule needs. A callback."""
    name, choice = st.session_state[key_of("layout.schedule")], held.choice()
    assert choice
    facts = SCHEDULE_FACTS[name]
    needed = facts.chunks or max(facts.least_chunks, choice["layout.chunks"])
    moved("layout.schedule", {"layout.chunks": needed})


def _text_uploaded(texts: Texts) -> None:
    uploaded = st.session_state[_UPLOAD]
    st.session_state.pop(_REFUSED_TEXT, None)
    if uploaded is None:
        return
    try:
        touch({"workload.text": texts.keep(uploaded.getvalue())})
    except RequestError as error:
        st.session_state[_REFUSED_TEXT] = (uploaded.name, error.sentence)
