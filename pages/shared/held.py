"""What the form of a run holds: a choice, as one entry of the session.

Widgets, links and the buttons that mend a choice all write there. A widget's own entry is there only as long as the widget is
drawn, and says the same: Streamlit goes through all entries of a session for each number field and list that it draws.
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
SIZES = ("tiny", "small", "medium")
SIZE = "form/size"  # the key of the list of sizes, which no field of a spec is
_HELD, _TOUCHED = "form/held", "form/touched"


@dataclass(frozen=True)
class _Held:
    choice: Choice
    custom: bool  # whether the fields of the model's shape are shown, though it may be one that has a name


def put(choice: Choice) -> None:
    """Make the form show a choice. Before its widgets are drawn."""
    st.session_state[_HELD] = _Held(choice, custom=choice.model_name == CUSTOM)


def choice() -> Choice | None:
    """What the form holds; None before `put`."""
    found: _Held | None = st.session_state.get(_HELD)
    return found.choice if found else None


def size() -> str:
    """What the shape is called in the list of sizes."""
    found: _Held = st.session_state[_HELD]
    return CUSTOM if found.custom else size_of(found.choice)


def touched() -> bool:
    """Whether the user moved a control since this was last asked."""
    return bool(st.session_state.pop(_TOUCHED, False))


def touch(changes: Mapping[str, Any] | None = None) -> None:
    """Note that the user moved a control, and write `changes`, field by field. A callback."""
    found: _Held = st.session_state[_HELD]
    changed = found.choice.having(changes or {})
    st.session_state[_TOUCHED] = True
    st.session_state[_HELD] = _Held(changed, found.custom or changed.model_name == CUSTOM)


# ------------------------------------------------------------------------------------------------------------ its widgets


def shown(field: str, value: Any, named: bool = False) -> str:
    """The key of the widget of a field, to be drawn next, which is to show `value`. `named`: its options have names.

    A widget that shows it already is left alone: somebody may be typing there.
    """
    key = key_of(field)
    if st.session_state.get(key) != value:
        st.session_state[key] = value
    return labelled(key) if named else key


def key_of(field: str) -> str:
    return field if field == SIZE else f"form/{field}"


def moved(field: str, also: Mapping[str, Any] | None = None) -> None:
    """Write what the widget of a field says, and `also` other fields. A callback; what was emptied takes its default."""
    value = st.session_state[key_of(field)]
    touch({**(also or {}), field: DEFAULTS[field] if value is None else value})


# --------------------------------------------------------------------------------------------------------------- the model


def sizes(family: str) -> list[str]:
    """The sizes that a family has here, the smallest first."""
    return [size for size in SIZES if f"{family}-{size}" in catalog.MODELS]


def size_of(choice: Choice) -> str:
    """What the shape is called: a size to run here, the catalog's name of a published model, or "custom"."""
    name = choice.model_name
    size = name.removeprefix(f"{choice['model.family']}-")
    return size if size in SIZES else name


def model_named() -> None:
    """A family and a size that has a name set the shape; "custom" starts from the shape that was there. A callback."""
    family, size = st.session_state[key_of("model.family")], st.session_state[SIZE]
    known = catalog.MODELS.get(f"{family}-{size}" if size in SIZES else size)
    if size != CUSTOM and (known is None or known.family != family):
        known = catalog.MODELS[f"{family}-{SIZES[0]}"]
    touch({f"model.{name}": value for name, value in known} if known else {"model.family": family})
    st.session_state[_HELD] = _Held(st.session_state[_HELD].choice, custom=size == CUSTOM)
