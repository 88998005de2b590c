"""The main numbers of a run, as large figures with labels."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from engine.tables import RunResult
from pages.charts.units import in_bytes, percent, ranges, scientific, short
from pages.charts.words import Words
from pages.shared.figures import Figure

PARITY_LIMIT = 1e-5  # of the largest entry of a parameter's gradient, in fp32
# The gradients of a trained model are small differences of large terms: from the trained weights, those of the unsharded model in
# fp32 are 4e-5 from the same in fp64.
_TRAINED_LIMIT = 1e-4


def figures(result: RunResult, say: Words) -> list[Figure]:
    s, environment = result.summary, result.environment
    loss = Figure(say("Loss"), "–", say("nothing was trained"))
    if "loss_last" in s:
        first = f"{s['loss_first']:.3f}"
        since = say.plural("from {first}, in {count} step", "from {first}, in {count} steps", s["steps"], first=first)
        loss = Figure(say("Loss"), f"{s['loss_last']:.3f}", since)
    return [
        loss,
        Figure(say("Peak memory"), in_bytes(s["peak_bytes"]), _fullest(result, say)),
        Figure(say("Bubble"), percent(s["bubble"]), say("of the pipeline's total time")),
        Figure(say("Traffic"), in_bytes(s["wire_bytes_per_rank"]), _where_sent(result, say)),
        Figure(say("Speed"), short(s["tokens_per_second"], say), say("tokens a second")),
        Figure(say("Backend"), environment["backend"], _why(environment["why"], say)),
    ]


def _where_sent(result: RunResult, say: Words) -> str:
    sent = result.summary["wire_bytes_per_rank"] * result.spec.layout.ranks
    between = result.summary.get("wire_bytes_between_nodes")
    if between is None or not sent:
        return say("sent by a rank in a step")
    return say("sent by a rank in a step; {share} of all between nodes", share=percent(between / sent))


def _fullest(result: RunResult, say: Words) -> str:
    totals = result.tables["memory_peak"].groupby("rank")["bytes"].sum()
    ranks = [int(rank) for rank in totals.index[totals == totals.max()]]
    return say.plural("on rank {ranks}, the fullest", "on ranks {ranks}, the fullest", len(ranks), ranks=ranges(ranks))


_WHY = re.compile(r"(\d+) GPUs? for (\d+) ranks?, so (gloo on the CPU|NCCL)")  # as saved runs have it, in English


def _why(text: str, say: Words) -> str:
    """The reason for the backend, in the reader's language."""
    found = _WHY.fullmatch(text)
    if not found:
        return text
    gpus = say.plural("{count} GPU", "{count} GPUs", int(found[1]))
    ranks = say.plural("{count} rank", "{count} ranks", int(found[2]))
    if found[3] == "NCCL":
        return say("{gpus} for {ranks}, so NCCL", gpus=gpus, ranks=ranks)
    return say("{gpus} for {ranks}, so gloo on the CPU", gpus=gpus, ranks=ranks)


@dataclass(frozen=True)
class Parity:
    """Whether a run's gradients equal those of the unsharded model."""

    good: bool
    sentence: str


def parity(result: RunResult, say: Words) -> Parity | None:
    """None if parity was not checked."""
    if "parity" not in result.tables:
        return None
    worst = float(result.tables["parity"]["max_rel"].max(skipna=False))
    if not math.isfinite(worst):
        return Parity(False, say("Gradients cannot be compared with the unsharded model's: some are not finite"))
    limit = _TRAINED_LIMIT if result.spec.workload.weights == "trained" else PARITY_LIMIT
    good = worst <= limit
    measured = {"worst": scientific(worst), "limit": scientific(limit)}
    if good:
        sentence = say(
            "Gradients equal to the unsharded model: largest difference {worst} of the largest entry, ≤ {limit}", **measured
        )
    else:
        sentence = say(
            "Gradients differ from the unsharded model: largest difference {worst} of the largest entry, > {limit}", **measured
        )
    return Parity(good, sentence)
