"""Which chunk does what on which microbatch, in which order: one short script a schedule.

Stage s of pp holds, by schedule:

    naive, gpipe, 1f1b, zb-h1    chunk s
    interleaved                  chunks s, s + pp, s + 2 pp, …
    zb-v, dualpipe-v             chunks s and 2 pp − 1 − s: down the stages and back up, the shape of a V
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from engine.schedule.actions import Action, Kind
from engine.spec import ScheduleName

KINDS: tuple[Kind, ...] = ("F", "B", "I", "W")


class Passes(NamedTuple):
    """Orders as arrays, one behind the other. (n,) each"""

    kinds: NDArray[Any]  # as numbers, by `KINDS`
    chunks: NDArray[Any]
    microbatches: NDArray[Any]
    of: NDArray[Any]  # which order


def compute_order(name: ScheduleName, pp: int, microbatches: int, chunks: int = 1) -> list[list[Action]]:
    """The F, B, I and W of each stage, in order; a list a stage. `chunks` (on each stage) counts for interleaved only."""
    orders: list[list[Action]] = [[] for _ in range(pp)]
    found = passes(name, pp, np.arange(pp), np.full(pp, microbatches), chunks)
    for kind, chunk, microbatch, stage in zip(*(column.tolist() for column in found), strict=True):
        orders[stage].append(Action(KINDS[kind], chunk, microbatch))
    return orders


def stage_order(name: ScheduleName, pp: int, stage: int, microbatches: int, chunks: int = 1) -> list[Action]:
    """The F, B, I and W of one stage alone, in order."""
    found = passes(name, pp, np.array([stage]), np.array([microbatches]), chunks)
    columns = (found.kinds.tolist(), found.chunks.tolist(), found.microbatches.tolist())
    return [Action(KINDS[kind], chunk, microbatch) for kind, chunk, microbatch in zip(*columns, strict=True)]


def kinds_of(name: ScheduleName, pp: int, microbatches: int, chunks: int = 1) -> frozenset[Kind]:
    """Which of F, B, I and W there are."""
    found = passes(name, pp, np.arange(pp), np.full(pp, microbatches), chunks)
    return frozenset(KINDS[kind] for kind in np.unique(found.kinds))


def passes(name: ScheduleName, pp: int, stages: Any, microbatches: Any, chunks: int = 1) -> Passes:
    """The same as arrays, of some stages, each with so many microbatches, (k,) both: the planner asks for very many."""
    script = _SCRIPTS[name](stages, pp, microbatches, chunks)
    parts = [_entries(text) for text, _ in script]
    widths = np.array([len(entries) for entries in parts])
    lengths = (np.array([often for _, often in script]).T.clip(0) * widths).ravel()  # of each order's parts
    which = np.repeat(np.arange(lengths.size), lengths)
    place = np.arange(len(which)) - np.repeat(lengths.cumsum() - lengths, lengths)
    of, part = np.divmod(which, len(parts))
    entry = (widths.cumsum() - widths)[part] + place % widths[part]
    kinds, ups, owed = (told.take(entry) for told in np.array([one for entries in parts for one in entries]).T)
    # The so manieth of its order, kind and direction; B counts as I.
    sort = ((of * len(KINDS) + np.where(kinds == _B, _I, kinds)) * 2 + ups).astype(np.min_scalar_type(8 * len(stages)))
    counts = np.bincount(sort)
    number = np.empty_like(of)
    number[np.argsort(sort, kind="stable")] = np.arange(len(of)) - np.repeat(counts.cumsum() - counts, counts)
    if name == "interleaved":
        chunk, number = _turn(stages[of], pp, microbatches[of], chunks, kinds == _F, number)
    else:
        chunk = np.where(ups, 2 * pp - 1 - stages[of], stages[of])
    late, early = np.flatnonzero(owed), np.flatnonzero(kinds == _I)
    if len(late):  # in each order, as many W as I
        chunk[late], number[late] = chunk[early], number[early]
    there = number < microbatches[of]
    return Passes(kinds[there], chunk[there], number[there], of[there])


# ------------------------------------------------------------------------------------------------------------ the scripts

_F, _B, _I, _W = range(len(KINDS))
Script = list[tuple[str, Any]]
"""What a stage does: entries, and how many times over these come, which is a number or one for each of several orders, (k,);
below one, not at all.

An entry is a kind, and takes the next microbatch that has not had it; B is I and W in one. Over a V it has an arrow: F↓ is of the
chunk on the way down, F↑ of the one on the way back up. A W without an arrow is that of the earliest I that has had none.
"""


@cache
def _entries(text: str) -> tuple[tuple[int, int, int], ...]:
    """Of each entry its kind's number in `KINDS`, whether its chunk is on the way up, and whether it is a W without an arrow."""
    return tuple((list(KINDS).index(one[0]), int("↑" in one), int(one == "W")) for one in text.split())  # type: ignore[arg-type]


def _naive(stage: Any, pp: int, microbatches: Any, chunks: int) -> Script:
    """One microbatch in the whole pipeline: forward through all stages, back through all, then the next."""
    return [("F B", microbatches)]


def _gpipe(stage: Any, pp: int, microbatches: Any, chunks: int) -> Script:
    """All forwards, then all backwards (Huang et al. 2019)."""
    return [("F", microbatches), ("B", microbatches)]


def _1f1b(stage: Any, pp: int, microbatches: Any, chunks: int) -> Script:
    """Fill the pipeline, then alternate, then drain (Narayanan et al. 2021): at most pp − stage in flight."""
    warm = np.minimum(pp - stage, microbatches)
    return [("F", warm), ("B F", microbatches - warm), ("B", warm)]


def _interleaved(stage: Any, pp: int, microbatches: Any, chunks: int) -> Script:
    """1F1B over several chunks a stage, which shortens the wait for the first microbatch (Narayanan et al. 2021, 2.2).

    A round of microbatches goes through all of a stage's chunks before the next one begins. A round is pp microbatches,
    and a few more where pp does not divide them.
    """
    warm = _interleaved_warm(stage, pp, microbatches, chunks)
    return [("F", warm), ("F B", microbatches * chunks - warm), ("B", warm)]


def _turn(stage: Any, pp: int, microbatches: Any, chunks: int, forward: Any, number: Any) -> tuple[Any, Any]:
    """Chunk and microbatch of an interleaved stage's so manieth pass of its direction: in a round, chunk after chunk."""
    each = _round(pp, microbatches)
    turn = number // each % chunks
    return np.where(forward, turn, chunks - 1 - turn) * pp + stage, number // (each * chunks) * each + number % each


def _round(pp: int, microbatches: Any) -> Any:
    """Microbatches in a round of the interleaved schedule."""
    return microbatches // np.maximum(1, microbatches // pp)


def _interleaved_warm(stage: Any, pp: int, microbatches: Any, chunks: int) -> Any:
    """Forwards before the first pair of forward and backward: a round through all chunks but one, and two a stage behind."""
    return np.minimum((chunks - 1) * _round(pp, microbatches) + 2 * (pp - 1 - stage), microbatches * chunks)


def _zb_h1(stage: Any, pp: int, microbatches: Any, chunks: int) -> Script:
    """1F1B whose later stages put W off, so that I reaches the earlier ones sooner (Qi et al. 2024, ZB-H1).

    Stage s has begun s fewer microbatches than stage 0 and puts off s of its W: every stage then holds what 1F1B's first does.
    """
    warm, late = np.minimum(pp - stage, microbatches), np.minimum(stage, microbatches)
    forwards = microbatches - warm
    return [
        ("F", warm),
        ("I F", np.minimum(late, forwards)),
        ("I", late - forwards),
        ("I W F", forwards - late),
        ("I W", microbatches - np.maximum(late, forwards)),
        ("W", late),
    ]


def _zb_v(stage: Any, pp: int, microbatches: Any, chunks: int) -> Script:
    """Zero bubble over a V, whose turn makes the last stage's backward start at once (Qi et al. 2024, section 6).

    Written for as many microbatches as fill the V; where there are fewer, those that are not there are left out.
    """
    behind = pp - stage  # stages from here to the turn of the V, this one included
    full = np.maximum(2 * pp - 1, microbatches)
    return [
        ("F↓", 2 * behind - 1),
        ("F↑ F↓", stage),
        ("F↑ I↑ W↑", behind),
        ("F↓ I↓ W↓ F↑ I↑ W↑", full - pp - behind + 1),
        ("I↓ W↓ F↑ I↑ W↑", behind - 1),
        ("I↓ I↑", stage),
        ("I↓ W↓", behind),
        ("W↑", stage),
        ("W↓", stage),
    ]


def _dualpipe_v(stage: Any, pp: int, microbatches: Any, chunks: int) -> Script:
    """A forward beside each backward over a V, and I and W only where the pipeline fills and drains (DeepSeek-AI 2025).

    Where the original runs a forward and a backward as one, to hide one's transfers behind the other, they stand here one
    behind the other. The last half of a stage's backwards are split.
    """
    ahead, behind = stage + 1, pp - 1 - stage  # stages from the open end to this one; from the next to the turn of the V
    half, odd = ahead // 2, ahead % 2
    return [
        ("F↓", 2 * behind),
        ("F↓ F↑", ahead),
        ("I↑ W F↑", behind),
        ("F↓ B↑ F↑ B↓", microbatches - 2 * pp + ahead),
        ("B↑ F↑ B↓", behind),
        ("B↑ B↓", half),
        ("B↑ I↓", odd),
        ("I↑ I↓", half),
        ("W I↓", behind),
        ("W", ahead),
    ]


_SCRIPTS: dict[ScheduleName, Callable[[Any, int, Any, int], Script]] = {
    "naive": _naive,
    "gpipe": _gpipe,
    "1f1b": _1f1b,
    "interleaved": _interleaved,
    "zb-h1": _zb_h1,
    "zb-v": _zb_v,
    "dualpipe-v": _dualpipe_v,
}


def splits(name: ScheduleName) -> bool:
    """Whether a schedule splits backward into I and W, at least of some microbatches."""
    return name in ("zb-h1", "zb-v", "dualpipe-v")


def enough_microbatches(name: ScheduleName, pp: Any, microbatches: Any) -> Any:
    """So many that more of them bring no higher instant of memory: the rest repeats what was there already. May be arrays."""
    m = microbatches
    most = {
        "naive": 3 + 0 * pp, "gpipe": m, "1f1b": pp + 1, "interleaved": np.where(m % pp, m, 3 * pp),
        "zb-h1": pp + 2, "zb-v": 2 * pp + 1, "dualpipe-v": 2 * pp + 1,
    }  # fmt: skip
    return np.minimum(m, most[name])


def script(name: ScheduleName, pp: int, stage: int, microbatches: int) -> list[tuple[list[Kind], int]]:
    """What a stage with one chunk does: kinds of passes, and how many times over these come, always of the next microbatch."""
    found = _SCRIPTS[name](stage, pp, microbatches, 1)
    return [([KINDS[kind] for kind, *_ in _entries(text)], max(0, int(often))) for text, often in found]


def in_flight_bound(name: ScheduleName, stage: int, pp: int, microbatches: int, chunks: int = 1) -> int:
    """The most passes, of one microbatch through one chunk, whose activations a stage may hold at once.

    From the schedule's definition. Where a stage has several chunks, each pass holds that much less.
    """
    return {
        "naive": 1,
        "gpipe": microbatches,
        "1f1b": min(pp - stage, microbatches),
        "interleaved": min(int(_interleaved_warm(stage, pp, microbatches, chunks)) + 1, microbatches * chunks),
        "zb-h1": min(pp, microbatches),
        "zb-v": min(2 * pp, 2 * microbatches),
        "dualpipe-v": 2 * pp + 1,
    }[name]


def messages_held(name: ScheduleName, pp: int, microbatches: int) -> int:
    """How many messages of one flow to one stage may be under way when the next is sent. One, wherever that can work.

    In an interleaved round of more microbatches than stages, the first of them come around the pipeline before stage 0 has
    begun the last, and wait there. Were the sender to wait as well, each stage would end up waiting for the next.
    """
    return max(1, int(_round(pp, microbatches)) - pp + 1) if name == "interleaved" else 1
