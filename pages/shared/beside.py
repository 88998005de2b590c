"""The items that the Compare page shows side by side, and their link. Any page can link there."""

from __future__ import annotations

from collections.abc import Sequence

import streamlit as st

from engine.spec import RunSpec
from pages.shared import links
from pages.shared.choice import Choice
from pages.shared.texts import Texts

MOST = 4  # items; a page has no room for more
WITH = "with"  # the link's parameter: the items
RUN = "run:"  # prefix of an item that is the name of a saved run; other items are codes of choices
BETWEEN = "*"  # separates items; does not occur in names and codes
KEPT = "compare/items"  # key in the session: the items shown last


def items_of(link: str) -> list[str]:
    """The items of a link's parameter: each once, and at most `MOST`."""
    return list(dict.fromkeys(filter(None, link.split(BETWEEN))))[:MOST]


def to_link(items: Sequence[str]) -> dict[str, str]:
    """The parameters of a link to the comparison of these items."""
    return {WITH: BETWEEN.join(items)}


def run_items(names: Sequence[str]) -> list[str]:
    """The items of saved runs."""
    return [RUN + name for name in names]


def item_of(spec: RunSpec, texts: Texts) -> str:
    return links.encode(Choice.of(spec, texts))


def with_last_compared(items: Sequence[str]) -> list[str]:
    """The items shown last, followed by these. If there are more than `MOST`, the oldest are left out."""
    kept = [item for item in st.session_state.get(KEPT, ()) if item not in items]
    return [*kept, *items][-MOST:]
