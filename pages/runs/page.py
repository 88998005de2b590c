"""All saved runs: search, open, compare, rename, delete and restore, download, upload."""

from __future__ import annotations

from collections.abc import Callable
from html import escape
from pathlib import Path
from urllib.parse import quote, urlencode

import streamlit as st

from engine import store
from engine.spec import RequestError
from pages.charts.words import Words
from pages.runs import downloads, table, upload
from pages.runs.rows import NEWEST, Broken, RunIndex, RunRow, matching, ordered, sortable
from pages.shared import navigation
from pages.shared.beside import item_of, run_items, to_link
from pages.shared.frame import LANG, inert, say
from pages.shared.service import EXAMPLE, Service

FIND, SORT, PICKED = "find", "sort", "picked"  # the link's parameters
SHOWN = 50  # rows of one part of the list
COMPARED = range(2, 5)  # how many runs the comparison takes
_SEARCH, _PART, _UPLOAD = "runs/search", "runs/part", "runs/upload"  # widgets
_PICK, _TURN, _ORDER, _LINK, _MOVED = "runs/pick", "runs/turn", "runs/order", "runs/link", "runs/moved"
_GONE, _DONE, _WRONG, _UPLOADS = "runs/gone", "runs/done", "runs/wrong", "runs/uploads"


def show(service: Service) -> None:
    rows, broken = _run_index(service.home).read()
    _follow_link()
    st.html(f'<h1 class="ss-unseen">{escape(say()("Runs"))}</h1>')
    _bar(service)
    _show_message(service)
    if not rows and not broken:
        _nothing()
        return
    picked = _picked(rows, service.home)
    found = ordered(matching(rows, st.session_state[_SEARCH], say()), st.session_state[_ORDER])
    _actions(service, picked, len(rows), len(found))
    if found:
        _list(found, [row.name for row in picked])
    else:
        _no_match()
    _show_broken(broken)
    st.caption(
        say()(
            "Peak memory is the fullest rank's, traffic what a rank sends in a step. Sizes are binary: 1 MiB is 1,048,576 bytes."
        )
    )
    _write_link()


@st.cache_resource(show_spinner=False)
def _run_index(home: Path) -> RunIndex:
    """The index for all sessions of a server. Runs that were deleted long ago are removed from disk."""
    store.empty_trash(home)
    return RunIndex(home)


# --------------------------------------------------------------------------------------------------- search, and its link


def _follow_link() -> None:
    """The link wins when a session starts and when the user edited it or went back. Otherwise the page wins."""
    state = st.session_state
    link = {name: st.query_params.get(name, "") for name in (FIND, SORT, PICKED)}
    moved = state.pop(_MOVED, False)
    if _LINK not in state or (not moved and link != state[_LINK]):
        state[_SEARCH] = link[FIND]
        state[_ORDER] = link[SORT] if sortable(link[SORT]) else NEWEST
        _pick([name for name in link[PICKED].split(",") if name])
        state[_LINK] = link
    else:
        state[_SEARCH] = state.get(_SEARCH, "")  # otherwise Streamlit drops it while another page is shown


def _write_link() -> None:
    state = st.session_state
    order = "" if state[_ORDER] == NEWEST else state[_ORDER]
    state[_LINK] = {FIND: state[_SEARCH], SORT: order, PICKED: ",".join(state[_PICK])}
    for name, value in state[_LINK].items():
        if value:
            st.query_params[name] = value
        elif name in st.query_params:
            del st.query_params[name]


def _pick(names: list[str]) -> None:
    """Choose runs by something other than their checkboxes."""
    st.session_state[_PICK] = names
    st.session_state[_TURN] = st.session_state.get(_TURN, 0) + 1


def _picked(rows: list[RunRow], home: Path) -> list[RunRow]:
    """The chosen runs, also by their former names. A name in the link without a run is ignored."""
    known = {row.name: row for row in rows}
    before = st.session_state[_PICK]
    now = [name if name in known else _name_now(home, name) for name in before]
    picked = [name for name in dict.fromkeys(now) if name in known]
    if picked != before:
        _pick(picked)
    return [known[name] for name in picked]


def _name_now(home: Path, former: str) -> str:
    """The name of a run that had that name; empty if there is none."""
    folder = store.current(home, former)
    return folder.name if folder else ""


def _moved() -> None:
    st.session_state[_MOVED] = True


def _searched() -> None:
    _moved()
    st.session_state[_PART] = 1


def _show_all() -> None:
    st.session_state[_SEARCH] = ""
    _searched()


# ---------------------------------------------------------------------------------------------------------- what is drawn


def _bar(service: Service) -> None:
    """The search field at the left, the upload at the right."""
    with st.container(horizontal=True, vertical_alignment="bottom", gap="small"):
        st.text_input(
            say()("Search"),
            key=_SEARCH,
            placeholder=say()("Name, model, layout, schedule or lever"),
            icon=":material/search:",
            on_change=_searched,
            label_visibility="collapsed",
        )
        # New keys after each upload, so that the popover is closed and the field is empty.
        count = st.session_state.get(_UPLOADS, 0)
        with st.popover(say()("Upload a run"), icon=":material/upload:", key=f"{_UPLOAD}-popover/{count}"):
            st.file_uploader(
                say()("A zip file of a run, downloaded here or made by the command export --to zip"),
                type="zip",
                key=f"{_UPLOAD}/{count}",
                on_change=_uploaded,
                args=(service,),
            )


def _show_message(service: Service) -> None:
    """The result of the last action, with Undo, or why it failed."""
    if wrong := st.session_state.pop(_WRONG, ""):
        st.error(inert(wrong), icon=":material/error:")
    if done := st.session_state.pop(_DONE, ""):
        st.success(inert(done), icon=":material/check:")
    gone: list[Path] = st.session_state.get(_GONE, [])
    if not gone:
        return
    with st.container(key="runs-gone", horizontal=True, vertical_alignment="center", gap="small"):
        text = say()("Deleted {name}.", name=inert(gone[0].name))
        if len(gone) > 1:
            text = say().plural("Deleted {count} run.", "Deleted {count} runs.", len(gone))
        st.info(text, icon=":material/delete:")
        st.button(say()("Undo"), icon=":material/undo:", on_click=_undo, args=(gone,))
        st.button(say()("Dismiss"), type="tertiary", icon=":material/close:", on_click=st.session_state.pop, args=(_GONE, None))


def _nothing() -> None:
    st.info(
        say()("No runs yet. Open the Lab, choose a layout and press **Run**: what it measured is kept here."),
        icon=":material/science:",
    )
    navigation.link("lab", say()("Open the Lab"), "science", {})
    navigation.link("lab", say()("See a finished run"), "monitoring", {"run": EXAMPLE})
    st.caption(say()("Or press **Upload a run** to add one made elsewhere, as a zip."))


def _no_match() -> None:
    with st.container(horizontal=True, vertical_alignment="center", gap="small"):
        st.info(say()("No run matches “{search}”.", search=inert(st.session_state[_SEARCH])), icon=":material/search_off:")
        st.button(say()("Show all"), on_click=_show_all)


def _show_broken(broken: list[Broken]) -> None:
    if broken:
        text = say().plural("{count} folder cannot be read as a run", "{count} folders cannot be read as runs", len(broken))
        with st.expander(text, icon=":material/folder_off:", type="compact"):
            for folder in broken:
                st.text(f"{folder.folder.name}: {say().sentence(folder.why)}")


def _list(found: list[RunRow], picked: list[str]) -> None:
    """The list in parts: a browser draws thousands of rows too slowly."""
    parts = -(-len(found) // SHOWN)
    part = st.session_state[_PART] = min(max(1, st.session_state.get(_PART, 1)), parts)
    first = SHOWN * (part - 1)

    def link(name: str) -> str:
        return _address("./", run=name)

    shown = found[first : first + SHOWN]
    table.draw(shown, picked, st.session_state[_TURN], st.session_state[_ORDER], link, say(), _ticked, _sorted)
    if parts > 1:
        with st.container(horizontal=True, horizontal_alignment="center", vertical_alignment="center", gap="small"):
            st.button(say()("Previous"), icon=":material/chevron_left:", disabled=part == 1, on_click=_turn, args=(-1,))
            last = first + len(shown)
            st.markdown(say()("{first} to {last} of {all}", first=first + 1, last=last, all=f"{len(found):,}"), width="content")
            st.button(say()("Next"), icon=":material/chevron_right:", disabled=part == parts, on_click=_turn, args=(1,))


def _actions(service: Service, picked: list[RunRow], total: int, found: int) -> None:
    """Actions for the chosen runs. The bar is always drawn, so that the page does not move."""
    names = [row.name for row in picked]
    with st.container(key="runs-actions", horizontal=True, vertical_alignment="center", gap="small"):
        st.markdown(_counted(len(picked), found, total, say()))
        one, some = len(picked) == 1, len(picked) in COMPARED
        navigation.link("lab", say()("Open in the Lab"), "science", _to_lab(picked[0], service) if one else {}, disabled=not one)
        beside = to_link(run_items(names)) if some else {}
        navigation.link("compare", say()("Compare"), "compare_arrows", beside, disabled=not some)
        key = names[0] if one else ""  # with another run it is another popover, which is closed
        may = service.may_change([row.folder for row in picked])
        with st.popover(say()("Rename"), icon=":material/edit:", disabled=not (one and may), key=f"runs/rename/{key}"):
            if one and may:
                _rename_form(service, picked[0])
        with st.popover(say()("Download"), icon=":material/download:", disabled=not one, key=f"runs/download/{key}"):
            if one:
                downloads.draw(picked[0].folder)
        st.button(
            say()("Delete"),
            icon=":material/delete:",
            disabled=not (picked and may),
            on_click=_delete,
            args=(service, [row.folder for row in picked]),
        )


def _to_lab(row: RunRow, service: Service) -> dict[str, str]:
    """A link to the Lab with the run, and its choice in the form."""
    return {"run": row.name, "spec": item_of(row.spec, service.texts)}


def _counted(picked: int, found: int, total: int, say: Words) -> str:
    if picked:
        return say.plural("**{count} run chosen**", "**{count} runs chosen**", picked)
    if found < total:
        return say("{found} of {total} runs found", found=f"{found:,}", total=f"{total:,}")
    return say.plural("{count} run. Select it to act on it.", "{count} runs. Select runs to act on them.", total)


def _rename_form(service: Service, row: RunRow) -> None:
    with st.form(f"runs/rename-form/{row.name}", border=False):
        key = f"runs/new-name/{row.name}"
        st.text_input(say()("New name"), value=row.name, key=key, max_chars=80)
        st.form_submit_button(say()("Rename"), type="primary", on_click=_rename, args=(service, row.folder, key))


def _address(page: str, **parameters: str) -> str:
    """Another page, in the language of this one."""
    if LANG in st.query_params:
        parameters[LANG] = st.query_params[LANG]
    return page + (f"?{urlencode(parameters, quote_via=quote)}" if parameters else "")


# ----------------------------------------------------------------------------------------------------------- on a change


def _ticked() -> None:
    _moved()
    st.session_state[_PICK] = table.now_picked()


def _sorted() -> None:
    """Sort by a column: numbers and times begin with the largest, names with the first. A second click reverses the order."""
    if column := table.now_sorted():
        _moved()
        before = st.session_state[_ORDER]
        falling = column not in table.LEFT or column == "saved"
        first, second = (f"-{column}", column) if falling else (column, f"-{column}")
        st.session_state[_ORDER] = second if before == first else first
        st.session_state[_PART] = 1


def _turn(by: int) -> None:
    st.session_state[_PART] += by


def _attempt(do: Callable[[], str]) -> None:
    """Do an action, and store a sentence on its result or its error."""
    _moved()
    try:
        if done := do():
            st.session_state[_DONE] = done
    except RequestError as error:
        text = say().sentence(error.sentence)
        st.session_state[_WRONG] = say()("{sentence}.", sentence=text[:1].upper() + text[1:])


def _rename(service: Service, folder: Path, key: str) -> None:
    def rename() -> str:
        service.refuse_change([folder])
        name = st.session_state[key].strip()
        service.refuse_name(name)
        named = store.rename(folder, name)
        _pick([named.name])
        return say()("Renamed to {name}.", name=named.name) if named != folder else ""

    _attempt(rename)


def _delete(service: Service, folders: list[Path]) -> None:
    def delete() -> str:
        service.refuse_change(folders)
        st.session_state[_GONE] = gone = []
        for folder in folders:
            gone.append(store.delete(folder))
        _pick([])
        return ""

    _attempt(delete)


def _undo(gone: list[Path]) -> None:
    def restore() -> str:
        back = []
        while gone:  # one at a time: if one fails, the others can still be restored
            back.append(store.restore(gone.pop(0)).name)
            _pick(back)
        return say().plural("{count} run restored.", "{count} runs restored.", len(back))

    _attempt(restore)


def _uploaded(service: Service) -> None:
    def take() -> str:
        count = st.session_state.get(_UPLOADS, 0)
        file = st.session_state[f"{_UPLOAD}/{count}"]
        if file is None:
            return ""
        st.session_state[_UPLOADS] = count + 1
        stem = Path(file.name).stem
        service.refuse_name(stem)
        service.refuse_upload(file.size)
        folder = upload.add(file.getvalue(), service.home, stem)
        service.note_uploaded(folder)
        _show_all()
        _pick([folder.name])
        return say()("Added {name}.", name=folder.name)

    _attempt(take)
