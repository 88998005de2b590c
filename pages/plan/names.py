"""Names of a plan's model and of its layouts."""

from __future__ import annotations

from pages.charts.names import microbatches, recomputes, schedule
from pages.charts.words import Words
from pages.plan.found import Found
from pages.plan.request import Request


def model(request: Request, words: Words) -> str:
    return request.model if request.is_named else words("custom model")


def levers(found: Found, row: int, words: Words) -> str:
    """The levers of a layout, without its mesh."""
    r = found.layout(row)
    named = schedule(str(r["schedule"]), words)
    said = [f"{named} × {r['chunks']}" if r["chunks"] > 1 else named] if r["pp"] > 1 else []
    said.append(microbatches(int(r["microbatches"]), int(r["microbatch_size"]), words))
    said += [f"ZeRO {r['zero']}"] if r["zero"] else []
    said += [words("sequence parallel")] if r["sequence_parallel"] else []
    if r["recompute"] != "none":
        said.append(words("recompute {what}", what=recomputes(words)[str(r["recompute"])]))
    return " · ".join(said)


def brief(found: Found, row: int, words: Words) -> str:
    """Its number and its mesh: "2 · dp32.tp4.pp8"."""
    return f"{row + 1} · {found.layout(row)['layout']}"
