"""The cells of the map of models and numbers of devices. It does not import Streamlit, so that the worker starts fast."""

from __future__ import annotations

from typing import Any

from engine.spec import RequestError, sentence
from pages.charts.units import in_bytes
from pages.plan.request import Request

_REPLAYED = 3  # of the best layouts of a cell that are simulated: enough to find the same best layout as a plan


def cell(asked: Request) -> dict[str, Any]:
    """The cell of a request: model, ranks, layout, mfu, memory_bytes, reason.

    If nothing fits, mfu is NaN and the reason says why.
    """
    row = unknown(asked, "")
    try:
        plan = asked.plan(_REPLAYED)
    except RequestError as error:
        return unknown(asked, error.sentence)
    best = plan.layouts.iloc[0]
    row |= {"layout": str(best["layout"]), "memory_bytes": int(best["memory_bytes"])}
    if not plan.feasible:
        need, have = in_bytes(row["memory_bytes"] + int(best["reserve_bytes"])), in_bytes(plan.device.memory_bytes)
        return row | {"reason": sentence("needs {need} with its reserve, and the device has {size}", need=need, size=have)}
    return row | {"mfu": float(best["mfu"])}


def unknown(asked: Request, reason: str) -> dict[str, Any]:
    """A cell without a layout."""
    nothing = {"layout": "", "mfu": float("nan"), "memory_bytes": 0, "reason": reason}
    return {"model": asked.model, "ranks": asked.ranks} | nothing
