"""The rank that is chosen: in the link as rank=3, so the same for all charts of a page, and whoever opens the link sees it."""

from __future__ import annotations

import streamlit as st

from engine.topology import Mesh
from pages.charts.roles import Roles, roles_of

RANK = "rank"  # the link's parameter
_MOVED = "chosen/moved"


def rank(mesh: Mesh) -> int | None:
    """The chosen rank; None if none is, or the link's is not one of the mesh's."""
    written = st.query_params.get(RANK, "")
    found = int(written) if written.isascii() and written.isdigit() and len(written) < 12 else mesh.size
    return found if found < mesh.size else None


def roles(mesh: Mesh) -> Roles | None:
    """What every rank is to the chosen one; None if none is chosen."""
    found = rank(mesh)
    return None if found is None else roles_of(mesh, found)


def choose(rank: int | None) -> None:
    """Choose a rank, or none. A callback; choosing the chosen one again lets it go."""
    st.session_state[_MOVED] = True
    if rank is None or st.query_params.get(RANK) == str(rank):
        st.query_params.pop(RANK, None)
    else:
        st.query_params[RANK] = str(rank)


def hold(rank: int) -> None:
    """Choose a rank, also if it is the chosen one: a list's entry is not let go by picking it again. A callback."""
    if st.query_params.get(RANK) != str(rank):
        choose(rank)


def whole_page() -> None:
    """Call first on a page: all of it is being drawn, so whatever was chosen shows."""
    st.session_state.pop(_MOVED, None)


def redraw_all() -> None:
    """Call first in a fragment whose charts choose ranks: what stands outside of it must follow."""
    if st.session_state.pop(_MOVED, False):
        st.rerun()
