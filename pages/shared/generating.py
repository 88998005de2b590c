"""The part of a run's form that is on generated text: the weights to start from, the prompt, and how it is continued."""

from __future__ import annotations

from typing import Any

import streamlit as st

from engine.spec import TRAINED, TRAINED_NAME
from pages.charts.words import Words
from pages.shared.choice import DEFAULTS, Choice, description, options, read
from pages.shared.held import choice as held
from pages.shared.held import key_of, moved, shown, touch
from pages.shared.texts import Texts

_WEIGHTS = "workload.weights"
# What a run needs which continues a prompt with the trained weights at once. The levers are those of training.
_TEXT_AT_ONCE: dict[str, Any] = {
    **{f"model.{name}": value for name, value in TRAINED},
    _WEIGHTS: "trained",
    "workload.seed": 1,
    "generate.prompt": "The pipeline ",
    "generate.new_tokens": 100,
    "generate.temperature": DEFAULTS["generate.temperature"],
    "generate.skip_training": True,
    **{
        field: DEFAULTS[field]
        for field in ("layout.split", "layout.zero", "layout.zero_replicas", "layout.sequence_parallel", "parity")
    },
}


def choose_weights(choice: Choice, say: Words) -> None:
    names = {"drawn": say("drawn at random"), "trained": say("trained ({model})", model=TRAINED_NAME)}
    st.segmented_control(
        say("Initial weights"),
        options(_WEIGHTS),
        format_func=names.__getitem__,
        key=shown(_WEIGHTS, choice[_WEIGHTS], named=True),
        help=say.described(description(_WEIGHTS)),
        required=True,
        on_change=_weights_chosen,
        width="stretch",
    )


def offer(choice: Choice, texts: Texts, say: Words) -> None:
    """A button that sets all that is needed for text from the trained weights, unless it is set."""
    if not choice["generate.prompt"]:
        st.button(
            say("Generate text with the trained weights"), icon=":material/text_fields:", on_click=text_at_once, args=(texts,)
        )


def text_at_once(texts: Texts) -> None:
    """Set all that is needed for text from the trained weights. A callback.

    The layout and the workload stay as they are if the trained model runs with them.
    """
    now = held()
    assert now
    plain = dict(Choice.default().values)
    layout = {field: value for field, value in plain.items() if field.startswith("layout.")}
    tried = [given | _TEXT_AT_ONCE for given in ({}, layout, plain)]
    touch(next((changes for changes in tried if read(now.with_changes(changes), texts).runnable), tried[-1]))


def _weights_chosen() -> None:
    """The trained weights are those of one model, so it is chosen with them. A callback."""
    trained = st.session_state[key_of(_WEIGHTS)] == "trained"
    moved(_WEIGHTS, {f"model.{name}": value for name, value in TRAINED} if trained else {})
