"""What stands side by side on the Compare page, as its link says it: any page can lead there."""

from __future__ import annotations

from collections.abc import Sequence

import streamlit as st

from engine.spec import RunSpec
from pages.shared import links
from pages.shared.choice import Choice
from pages.shared.texts import Texts

MOST = 4  # more do not fit side by side
WITH = "with"  # the link's parameter: what stands side by side
RUN = "run:"  # what an item of the link begins with that is a saved run's name; any other is a choice's code
BETWEEN = "*"  # between the items of a link; in no name and no code
KEPT = "compare/items"  # in the session: what stood side by side last


def items_of(link: str) -> list[str]:
    """The items in a link's parameter, each once, at most as many as fit."""
    return list(dict.fromkeys(filter(None, link.split(BETWEEN))))[:MOST]


def to_link(items: Sequence[str]) -> dict[str, str]:
    """What a link to the comparison says."""
    return {WITH: BETWEEN.join(items)}


def run_items(names: Sequence[str]) -> list[str]:
    """The items that saved runs are."""
    return [RUN + name for name in names]


def item_of(spec: RunSpec, texts: Texts) -> str:
    return links.encode(Choice.of(spec, texts))


def with_these(items: Sequence[str]) -> list[str]:
    """What stood side by side last, and these after it; the oldest make room."""
    kept = [item for item in st.session_state.get(KEPT, ()) if item not in items]
    return [*kept, *items][-MOST:]
