"""Names of a plan's model and of its layouts."""

from __future__ import annotations

from engine.spec import LayoutSpec
from engine.spec.numbers import in_runs
from pages.charts.names import microbatches, recompute, schedule, zero_stage
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
    said += [words("layers {split}", split=in_runs(LayoutSpec.split_of(r["split"])))] if r["split"] else []
    said.append(microbatches(int(r["microbatches"]), int(r["microbatch_size"]), words))
    said += [zero_stage(int(r["zero"]), int(r["zero_replicas"]), words)] if r["zero"] else []
    said += [words("sequence parallel")] if r["sequence_parallel"] else []
    if r["recompute"] != "none":
        what = recompute(str(r["recompute"]), int(r["recompute_layers"]), 1, words)
        said.append(words("recompute {what}", what=what))
    return " · ".join(said)


def pipeline(code: str, chunks: int, split: str, words: Words) -> str:
    """A schedule with its chunks, and whether layers are split unevenly, for a narrow column."""
    named = schedule(code, words) + (f" × {chunks}" if chunks > 1 else "")
    return words("{schedule}, uneven", schedule=named) if split else named


def brief(found: Found, row: int, words: Words) -> str:
    """Its number and its mesh: "2 · dp32.tp4.pp8"."""
    return f"{row + 1} · {found.layout(row)['layout']}"
