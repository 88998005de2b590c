"""The choice that the form of a run shows, as one entry of the session.

Widgets, links and the buttons that solve problems write to it. A widget's own entry has the same value, and exists only while the
widget is drawn: Streamlit iterates over all entries of a session for each number field and list that it draws.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import streamlit as st

from engine import catalog
from pages.shared.choice import DEFAULTS, Choice
from pages.shared.frame import labelled

CUSTOM = "custom"
SIZES = ("tiny", "mini", "small", "medium")
SIZE = "form/size"  # the key of the list of sizes, which is not a field of a spec
_HELD, _TOUCHED = "form/held", "form/touched"


@dataclass(frozen=True)
class _Held:
    choice: Choice
    custom: bool  # whether the fields of the model's sizes are shown, even if these are a named model's


def put(choice: Choice) -> None:
    """Make the form show a choice. Call it before widgets are drawn."""
    st.session_state[_HELD] = _Held(choice, custom=choice.model_name == CUSTOM)


def choice() -> Choice | None:
    """The choice of the form; None before `put`."""
    found: _Held | None = st.session_state.get(_HELD)
    return found.choice if found else None


def size() -> str:
    """The entry of the list of sizes."""
    found: _Held = st.session_state[_HELD]
    return CUSTOM if found.custom else size_of(found.choice)


def touched() -> bool:
    """Whether the user moved a control since the last call."""
    return bool(st.session_state.pop(_TOUCHED, False))


def touch(changes: Mapping[str, Any] | None = None) -> None:
    """Note that the user moved a control, and write `changes`, field by field. A callback."""
    found: _Held = st.session_state[_HELD]
    changed = found.choice.with_changes(changes or {})
    st.session_state[_TOUCHED] = True
    st.session_state[_HELD] = _Held(changed, found.custom or changed.model_name == CUSTOM)


# ------------------------------------------------------------------------------------------------------------ its widgets


def shown(field: str, value: Any, named: bool = False) -> str:
    """The key for the widget of a field, which will show `value`. `named`: its options have translated names.

    If the widget has this value already, its entry is not written: the user may be typing.
    """
    key = key_of(field)
    if st.session_state.get(key) != value:
        st.session_state[key] = value
    return labelled(key) if named else key


def key_of(field: str) -> str:
    return field if field == SIZE else f"form/{field}"


def moved(field: str, also: Mapping[str, Any] | None = None) -> None:
    """Write the value of a field's widget, and the fields in `also`. An empty field gets its default. A callback."""
    value = st.session_state[key_of(field)]
    touch({**(also or {}), field: DEFAULTS[field] if value is None else value})


# --------------------------------------------------------------------------------------------------------------- the model


def sizes(family: str) -> list[str]:
    """The sizes of a family in the catalog, the smallest first."""
    return [size for size in SIZES if f"{family}-{size}" in catalog.MODELS]


def size_of(choice: Choice) -> str:
    """The name of a model's sizes: one of `SIZES`, the catalog's name of a published model, or "custom"."""
    name = choice.model_name
    size = name.removeprefix(f"{choice['model.family']}-")
    return size if size in SIZES else name


def model_named() -> None:
    """Set the model by family and size. "custom" keeps the current sizes. Weights are drawn again. A callback."""
    family, size = st.session_state[key_of("model.family")], st.session_state[SIZE]
    known = catalog.MODELS.get(f"{family}-{size}" if size in SIZES else size)
    if size != CUSTOM and (known is None or known.family != family):
        known = catalog.MODELS[f"{family}-{SIZES[0]}"]
    model = {f"model.{name}": value for name, value in known} if known else {"model.family": family}
    touch(model | {"workload.weights": DEFAULTS["workload.weights"]})
    st.session_state[_HELD] = _Held(st.session_state[_HELD].choice, custom=size == CUSTOM)
