"""Published figures beside this program's: formulas and predictions compared with papers."""

from __future__ import annotations

import pandas as pd
import streamlit as st

from engine.papers.bubbles import QI
from engine.papers.reference import UNITS, Quantity, Reference
from engine.predict.speed.rates import Assumptions
from pages.charts.words import Words
from pages.plan.cases import cases
from pages.plan.dry_run import signed
from pages.plan.request import Request
from pages.shared.frame import labelled, say
from pages.shared.subprocesses import run_in_worker


def draw(request: Request) -> None:
    words = say()
    with st.expander(words("Comparison with published figures"), key="plan-published", on_change="rerun") as opened:
        if not opened.open:
            return
        with st.spinner(words("Computing the published cases")):
            found = computed(request.assumed)
        near = [r for r in found if concerns(r, request)]
        wide = [words("All"), words("For this model or device")]
        shown = found
        if near:
            scopes = {"near": wide[1], "all": wide[0]}
            picked = st.segmented_control(
                words("Which"), list(scopes), key=labelled("plan/published"), format_func=scopes.__getitem__, default="near",
                required=True, label_visibility="collapsed",
            )  # fmt: skip
            shown = near if picked == "near" else found
        else:
            st.caption(words("None is for this model or device; all are listed."))
        _table(shown, words)
        st.caption(
            words(
                "All rows use the same settings and the hardware efficiency at the left; nothing is fitted to a row. "
                "Formulas must match the printed values exactly; measured values are predicted."
            )
        )


@st.cache_data(max_entries=16, show_spinner=False)
def computed(assumed: Assumptions) -> list[Reference]:
    """Computed in a worker process: in the server it would leave 50 MB, a third of it simulated schedules."""
    return run_in_worker(cases, assumed)


def concerns(reference: Reference, request: Request) -> bool:
    """Whether the figure is about the request's model, or was measured on its device."""
    return reference.model == request.model or (reference.device != "" and reference.device == request.device)


def _table(found: list[Reference], words: Words) -> None:
    quantities = _quantities(words)
    rows = pd.DataFrame(
        [
            {
                "model": r.model,
                "device": r.device or "–",
                "layout": words.sentence(r.layout),
                "what": f"{quantities[r.quantity]} ({UNITS[r.quantity]})",
                "published": r.published,
                "ours": r.ours,
                "error": signed(r.error),
                "kind": _kind(r, words),
                "source": r.source,
            }
            for r in found
        ]
    )
    number = st.column_config.NumberColumn
    st.dataframe(
        rows,
        hide_index=True,
        width="stretch",
        alt=words("Comparison with published figures"),
        key="plan-published-table",
        column_config={
            "model": words("model"),
            "device": words("device"),
            "layout": st.column_config.TextColumn(words("layout"), width="medium"),
            "what": words("what"),
            "published": number(words("published"), format="%.4g"),
            "ours": number(words("ours"), format="%.4g"),
            "error": words("our error"),
            "kind": words("type of figure"),
            "source": st.column_config.TextColumn(words("source"), width="large"),
        },
    )


def _quantities(words: Words) -> dict[Quantity, str]:
    return {
        "memory": words("memory of a device"),
        "states": words("states of a device"),
        "profiled bubble": words("bubble, from their profiled times"),
        "bubble": words("bubble, from the device's figures"),
        "speed": words("speed of a device"),
        "step": words("a step"),
    }


def _kind(reference: Reference, words: Words) -> str:
    """The kind of a published figure."""
    if reference.source == QI:
        return words("computed from profiled times")
    return words("formula") if reference.exact else words("measured")
