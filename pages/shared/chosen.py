"""The chosen rank. It is in the link as rank=3, so it is the same in all charts, and for everybody who opens the link."""

from __future__ import annotations

import streamlit as st

from engine.topology import Mesh
from pages.charts.roles import Roles, roles_of

RANK = "rank"  # the link's parameter
_MOVED = "chosen/moved"


def rank(mesh: Mesh) -> int | None:
    """The chosen rank. None if there is none, or if it is not in the mesh."""
    written = st.query_params.get(RANK, "")
    found = int(written) if written.isascii() and written.isdigit() and len(written) < 12 else mesh.size
    return found if found < mesh.size else None


def roles(mesh: Mesh) -> Roles | None:
    """Every rank's relation to the chosen one. None if none is chosen."""
    found = rank(mesh)
    return None if found is None else roles_of(mesh, found)


def choose(rank: int | None) -> None:
    """Choose a rank, or none. Choosing the chosen rank again clears the choice. A callback."""
    st.session_state[_MOVED] = True
    if rank is None or st.query_params.get(RANK) == str(rank):
        st.query_params.pop(RANK, None)
    else:
        st.query_params[RANK] = str(rank)


def set_rank(rank: int) -> None:
    """Choose a rank. Unlike `choose`, it never clears the choice: for lists. A callback."""
    if st.query_params.get(RANK) != str(rank):
        choose(rank)


def whole_page() -> None:
    """Call first on a page: all of it is drawn now, with the chosen rank."""
    st.session_state.pop(_MOVED, None)


def redraw_all() -> None:
    """Call first in a fragment with charts that choose ranks. After a choice, it redraws the whole page."""
    if st.session_state.pop(_MOVED, False):
        st.rerun()
