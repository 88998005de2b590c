"""Keeps the server's memory small and its garbage collections short."""

from __future__ import annotations

import ctypes
import gc
import platform

import streamlit as st

_M_ARENA_MAX = -8  # malloc.h of the GNU C library
_YOUNG = 10_000  # objects, about as many as drawing a page creates


@st.cache_resource(show_spinner=False)
def limit_server_memory() -> None:
    """Set the C library and Python's collector up. Called once, when all modules are loaded."""
    _share_one_heap()
    _freeze_loaded_objects()


def _share_one_heap() -> None:
    """Let all threads allocate from one heap, with glibc.

    By default each thread has its own heap. Each page is drawn by a new thread, and memory that it frees is not reused by others:
    20 MB with thirty readers.
    """
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 1)


def _freeze_loaded_objects() -> None:
    """Exclude all objects that exist now from garbage collection, and collect less often.

    Loaded modules stay as long as the server runs. To scan them took 0.1 s, in which no page was drawn, at one move of a control
    in 150.
    """
    gc.collect()  # otherwise garbage would be frozen too
    gc.freeze()
    gc.set_threshold(_YOUNG)
