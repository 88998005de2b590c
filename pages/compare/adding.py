"""What can be added to the comparison: what the Lab's form holds, a column with one lever moved, or a saved run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import streamlit as st

from engine import store
from pages.compare import columns, names, sweep
from pages.compare.columns import Column
from pages.shared import beside, form, links
from pages.shared.beside import KEPT, RUN, run_items
from pages.shared.frame import labelled, say
from pages.shared.service import Service


def bar(service: Service, items: Sequence[str], there: Sequence[Column]) -> None:
    words = say()
    full = len(items) >= beside.MOST
    with st.container(horizontal=True, vertical_alignment="center", key="compare-bar"):
        st.markdown(f"### {words('Side by side')}", anchors=False, width="content")
        with st.popover(words("Add a layout"), icon=":material/add:", disabled=full, key=f"compare/add-layout/{len(items)}"):
            _add_layout(service, items, there)
        with st.popover(
            words("Add a saved run"), icon=":material/folder_open:", disabled=full, key=f"compare/add-run/{len(items)}"
        ):
            _add_run(service, items)
        if full:
            st.caption(words("Four is the most that stand side by side; remove one to add another."))


def _add_layout(service: Service, items: Sequence[str], there: Sequence[Column]) -> None:
    words = say()
    if (choice := form.held()) is not None:
        code = links.encode(choice)
        st.button(
            words("What the Lab's form holds now"),
            width="stretch",
            on_click=put,
            args=([*items, code],),
            icon=":material/science:",
            disabled=code in items,
        )
    if not there:
        if choice is None:
            st.button(words("Two layouts to begin with"), width="stretch", on_click=put, args=(columns.default_items(),))
        return
    st.caption(words("Or one of these with a lever moved:"))
    titles = {column.item: columns.title(column, there, words) for column in there}
    item = _select(words("Layout"), list(titles), "compare/base", titles)
    lever = _select(words("Lever"), list(sweep.LEVERS), "compare/lever", names.levers(words))
    base = next(column.spec for column in there if column.item == item)
    found = sweep.others(base, lever)
    if not found:
        st.info(words("No other value of this lever goes with the rest."))
        return
    value = _select(words("Value"), list(found), f"compare/value/{lever}", {v: names.value(lever, v, words) for v in found})
    new = beside.item_of(found[value], service.texts)
    st.button(words("Add"), type="primary", width="stretch", on_click=put, args=([*items, new],), disabled=new in items)


def _add_run(service: Service, items: Sequence[str]) -> None:
    words = say()
    found = [folder.name for folder in store.listing(service.home) if RUN + folder.name not in items]
    if not found:
        st.info(words("There is no other saved run: press Run in the Lab, and it will be here."))
        return
    name = _select(words("Saved run"), found, "compare/run", {name: name for name in found})
    new = [*items, *run_items([name])]
    st.button(words("Add"), type="primary", width="stretch", key="compare/add-run", on_click=put, args=(new,))


def _select(label: str, options: list[Any], key: str, named: dict[Any, str]) -> Any:
    if st.session_state.get(key) not in options:
        st.session_state[key] = options[0]
    return st.selectbox(label, options, format_func=named.__getitem__, key=labelled(key))


def put(items: Sequence[str]) -> None:
    """Make the link say what stands side by side. A callback."""
    st.query_params[beside.WITH] = beside.BETWEEN.join(items)
    st.session_state[KEPT] = list(items)
