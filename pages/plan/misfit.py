"""Why a layout does not fit, what to change, and how many devices would be enough."""

from __future__ import annotations

from dataclasses import replace

import streamlit as st

from engine.launch.recording.client import with_ledgers
from engine.planner.candidates import MOST
from engine.planner.explain import Lever, Reason, way_to_fit
from pages.charts.units import in_bytes
from pages.charts.words import Words
from pages.plan.found import Found
from pages.plan.request import Request, to_link, usual_batch
from pages.plan.searches import planned, searched
from pages.shared import navigation
from pages.shared.cache import cached

_MOST_TIMES = 64  # as many devices are tried


def draw(request: Request, plan: Found, row: int, words: Words) -> None:
    """If the layout does not fit: the fullest stage, what is missing, and the cheapest changes or the devices that help."""
    r = plan.layout(row)
    if bool(r["fits"]):
        return
    stage, each = int(r["fullest_stage"]), plan.plan.ranks // int(r["pp"])
    need, free, have = int(r["memory_bytes"]), int(r["reserve_bytes"]), plan.device.memory_bytes
    first = stage * each
    numbers = {
        "stage": stage,
        "layout": r["layout"],
        "need": in_bytes(need),
        "size": in_bytes(have),
        "reserve": in_bytes(free),
        "missing": in_bytes(need + free - have),
    }
    if each == 1:
        sentence = words(
            "Rank {rank}, stage {stage} of {layout}, needs {need} beside {reserve} that are kept free; the device has {size}, "
            "which is {missing} too little.",
            rank=f"{first:,}",
            **numbers,
        )
    else:
        sentence = words(
            "Ranks {first} to {last}, stage {stage} of {layout}: each needs {need} beside {reserve} that are kept free; the "
            "device has {size}, which is {missing} too little.",
            first=f"{first:,}",
            last=f"{first + each - 1:,}",
            **numbers,
        )
    st.warning(sentence, icon=":material/memory_alt:")
    changes = _changes_to_fit(request, row)
    if changes:
        steps = "\n".join(f"1. {said(lever.reason, words)}" for lever in changes)
        st.markdown(f"**{words('What to change, cheapest first')}**\n\n{steps}")
    if changes and changes[-1].fits:
        return
    if changes:
        st.markdown(words("All memory optimizations are on, and it still does not fit."))
    else:
        st.markdown(words("No single change reduces the memory."))
    if plan.feasible:
        st.markdown(
            words.plural(
                "{count} other layout fits; the best is number 1.",
                "{count} other layouts fit; the best is number 1.",
                plan.feasible,
            )
        )
    else:
        _more_devices(request, words)


def _more_devices(request: Request, words: Words) -> None:
    """The least power of two times as many devices on which a layout fits, as a link; or the most that were tried."""
    with st.spinner(words("Searching for how many devices are enough"), show_time=True):
        last, fits = _last_tried(request)
    count, batch = f"{last.ranks:,}", f"{last.batch:,}"
    if fits:
        text = words("With {count} devices it fits", count=count)
        if last.batch != request.batch:
            text = words("With {count} devices and a batch of {batch} it fits", count=count, batch=batch)
        navigation.link("plan", text, "add_circle", to_link(last))
    elif last.batch != request.batch:
        st.markdown(
            words(
                "Even {count} devices of this kind, with a batch of {batch}, are not enough: use larger ones.",
                count=count,
                batch=batch,
            )
        )
    elif last != request:
        st.markdown(words("Even {count} devices of this kind are not enough: use larger ones.", count=count))


@cached(64)
def _last_tried(request: Request) -> tuple[Request, bool]:
    """The last request that was searched, and whether a layout of it fits. `request` if no more devices can be searched."""
    more, times = request, 2
    while times <= _MOST_TIMES and request.ranks * times <= MOST:
        ranks = request.ranks * times
        more = replace(request, ranks=ranks, batch=usual_batch(request.batch, ranks))
        if searched(more).feasible:
            return more, True
        times *= 2
    return more, False


@cached(64)
def _changes_to_fit(request: Request, row: int) -> list[Lever]:
    plan = planned(request, row)
    return with_ledgers(lambda: way_to_fit(plan.plan, plan.spec(row)))


def said(reason: Reason, words: Words) -> str:
    values = {name: said(value, words) if isinstance(value, Reason) else value for name, value in reason.values.items()}
    return words.described(reason.text).format(**values)
