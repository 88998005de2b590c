"""The controls that add a column to the comparison: a layout, a column with one lever changed, or a saved run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import streamlit as st

from engine import store
from engine.spec import LayoutSpec, RequestError, RunSpec, sentence
from pages.compare import columns, names, sweep
from pages.compare.columns import Column
from pages.shared import beside, held, links
from pages.shared.beside import KEPT, RUN, run_items
from pages.shared.choice import DEFAULTS, Choice, spec_of
from pages.shared.frame import inert, labelled, say
from pages.shared.service import Service
from pages.shared.texts import Texts

_WRITTEN = "compare/text"


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
            st.caption(words("At most four are compared; remove one to add another."))


def _add_layout(service: Service, items: Sequence[str], there: Sequence[Column]) -> None:
    words = say()
    if (choice := held.choice()) is not None:
        code = links.encode(choice)
        st.button(
            words("Current settings of the Lab"),
            width="stretch",
            on_click=put,
            args=([*items, code],),
            icon=":material/science:",
            disabled=code in items,
        )
    if there:
        st.caption(
            words("One of these with one setting changed:")
            if choice is None
            else words("Or one of these with one setting changed:")
        )
        _moved(service, items, there)
    elif choice is None:
        st.button(words("Example with two layouts"), width="stretch", on_click=put, args=(columns.default_items(),))
    _write(service, items, there)


def _moved(service: Service, items: Sequence[str], there: Sequence[Column]) -> None:
    words = say()
    titles = {column.item: columns.title(column, there, words) for column in there}
    item = _select(words("Layout"), list(titles), "compare/base", titles)
    lever = _select(words("Setting"), list(sweep.LEVERS), "compare/lever", names.levers(words))
    base = next(column.spec for column in there if column.item == item)
    found = sweep.others(base, lever)
    if not found:
        st.info(words("No other value of this setting is compatible with the rest."))
        return
    value = _select(words("Value"), list(found), f"compare/value/{lever}", {v: names.value(lever, v, words) for v in found})
    new = beside.item_of(found[value], service.texts)
    st.button(words("Add"), type="primary", width="stretch", on_click=put, args=([*items, new],), disabled=new in items)


def _write(service: Service, items: Sequence[str], there: Sequence[Column]) -> None:
    """A text field for any layout, written as in a link. In a Streamlit form: only Enter or the button adds the layout."""
    words = say()
    with st.form("compare/written", border=False):
        st.text_input(
            words("Or enter a layout code"),
            key=_WRITTEN,
            placeholder="dp4.tp1.pp2",
            help=words(
                "Such as gpt-tiny~dp2.tp2.pp2~1f1b, or only dp4.tp1.pp2, with the model and the workload of the first column."
            ),
        )
        asked = st.form_submit_button(
            words("Add this layout"), width="stretch", on_click=_put_written, args=(service, items, there)
        )
    if asked and (text := st.session_state.get(_WRITTEN)):  # the text is still there, so it was not added
        refusal = inert(words.sentence(_refused(service, items, there, text)))
        first = refusal[:1] if "=" in refusal.split(" ")[0] else refusal[:1].upper()  # a field such as pp=9 has no capital
        st.error(words("{sentence}.", sentence=first + refusal[1:].removesuffix(".")), icon=":material/error:")


def _put_written(service: Service, items: Sequence[str], there: Sequence[Column]) -> None:
    """Add the written layout if it is valid. A callback."""
    text = st.session_state[_WRITTEN].strip()
    if text and not _refused(service, items, there, text):
        put([*items, written(text, there[0].spec if there else None, service.texts)])
        st.session_state[_WRITTEN] = ""


def _refused(service: Service, items: Sequence[str], there: Sequence[Column], text: str) -> str:
    """Why the written layout cannot be added; "" if it can."""
    try:
        item = written(text, there[0].spec if there else None, service.texts)
    except (RequestError, links.LinkError) as error:
        return error.sentence
    return sentence("That layout is already shown.") if item in items else ""


def written(text: str, first: RunSpec | None, texts: Texts) -> str:
    """The item for a written layout: gpt-tiny~dp2.tp2.pp2~1f1b, or only dp4.tp1.pp2.

    The short form takes model and workload from `first`, or else the Lab's defaults. Raises `RequestError` or `LinkError`.
    """
    text = text.strip()
    if "~" in text:
        choice = links.decode(text)
    else:
        base = Choice.default() if first is None else Choice.of(first, texts)
        usual = {field: value for field, value in DEFAULTS.items() if field.startswith("layout.")}
        choice = base.with_changes(usual | {f"layout.{axis}": degree for axis, degree in LayoutSpec.degrees(text[:60]).items()})
    spec_of(choice, texts)
    return links.encode(choice)


def _add_run(service: Service, items: Sequence[str]) -> None:
    words = say()
    found = [folder.name for folder in store.listing(service.home) if RUN + folder.name not in items]
    if not found:
        st.info(words("There is no other saved run. Press Run in the Lab to make one."))
        return
    name = _select(words("Saved run"), found, "compare/run", {name: name for name in found})
    new = [*items, *run_items([name])]
    st.button(words("Add"), type="primary", width="stretch", key="compare/add-run", on_click=put, args=(new,))


def _select(label: str, options: list[Any], key: str, named: dict[Any, str]) -> Any:
    if st.session_state.get(key) not in options:
        st.session_state[key] = options[0]
    return st.selectbox(label, options, format_func=named.__getitem__, key=labelled(key))


def put(items: Sequence[str]) -> None:
    """Write the items into the link. A callback."""
    st.query_params[beside.WITH] = beside.BETWEEN.join(items)
    st.session_state[KEPT] = list(items)
