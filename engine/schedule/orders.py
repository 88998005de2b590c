"""Which chunk does what on which microbatch, in which order: one short function a schedule.

Stage s of pp holds, by schedule:

    naive, gpipe, 1f1b, zb-h1    chunk s
    interleaved                  chunks s, s + pp, s + 2 pp, …
    zb-v, dualpipe-v             chunks s and 2 pp − 1 − s: down the stages and back up, the shape of a V
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable

from engine.schedule.actions import Action, Kind
from engine.spec import ScheduleName

Pass = tuple[Kind, int, int]  # kind, chunk and microbatch of an F, B, I or W


def compute_order(name: ScheduleName, pp: int, microbatches: int, chunks: int = 1) -> list[list[Action]]:
    """The F, B, I and W of each stage, in order; a list a stage. `chunks` (on each stage) counts for interleaved only."""
    return [[Action(*one) for one in stage_passes(name, stage, pp, microbatches, chunks)] for stage in range(pp)]


def stage_passes(name: ScheduleName, stage: int, pp: int, microbatches: int, chunks: int = 1) -> list[Pass]:
    """The same for one stage alone, as plain tuples: the planner asks for very many."""
    return _ORDERS[name](stage, pp, microbatches, chunks)


class _Writer:
    """Writes an order down. An entry takes the next microbatch of its chunk that has not had that kind of action."""

    def __init__(self) -> None:
        self.passes: list[Pass] = []
        self._next: defaultdict[tuple[Kind, int], int] = defaultdict(int)
        self._owed: deque[Pass] = deque()  # the W of each I written, until it is written itself

    def write(self, *entries: tuple[Kind, int], times: int = 1) -> None:
        """Each entry is (kind, chunk), and all of them come `times` times over. B is I and W in one."""
        counts = self._next
        for kind, chunk in entries * times:
            counted: tuple[Kind, int] = ("I", chunk) if kind == "B" else (kind, chunk)
            microbatch = counts[counted]
            counts[counted] = microbatch + 1
            self.passes.append((kind, chunk, microbatch))
            if kind == "I":
                self._owed.append(("W", chunk, microbatch))

    @property
    def owes(self) -> bool:
        return bool(self._owed)

    def write_owed(self) -> None:
        """The W of the earliest I that has had none."""
        self.passes.append(self._owed.popleft())


def _naive(stage: int, pp: int, microbatches: int, chunks: int) -> list[Pass]:
    """One microbatch in the whole pipeline: forward through all stages, back through all, then the next."""
    return [(kind, stage, m) for m in range(microbatches) for kind in ("F", "B")]


def _gpipe(stage: int, pp: int, microbatches: int, chunks: int) -> list[Pass]:
    """All forwards, then all backwards (Huang et al. 2019)."""
    return [(kind, stage, m) for kind in ("F", "B") for m in range(microbatches)]


def _1f1b(stage: int, pp: int, microbatches: int, chunks: int) -> list[Pass]:
    """Fill the pipeline, then alternate, then drain (Narayanan et al. 2021): at most pp − stage in flight."""
    warm = min(pp - stage, microbatches)
    order: list[Pass] = [("F", stage, m) for m in range(warm)]
    for m in range(microbatches):
        order.append(("B", stage, m))
        if m + warm < microbatches:
            order.append(("F", stage, m + warm))
    return order


def _interleaved(stage: int, pp: int, microbatches: int, chunks: int) -> list[Pass]:
    """1F1B over several chunks a stage, which shortens the wait for the first microbatch (Narayanan et al. 2021, 2.2).

    A round of microbatches goes through all of a stage's chunks before the next one begins. A round is pp microbatches,
    and a few more where pp does not divide them.
    """
    each, total = _round(pp, microbatches), microbatches * chunks
    warm = _interleaved_warm(stage, pp, microbatches, chunks)
    turns = [(k // each % chunks, k // (each * chunks) * each + k % each) for k in range(total)]  # in a round, chunk after chunk
    forward: list[Pass] = [("F", turn * pp + stage, m) for turn, m in turns]
    backward: list[Pass] = [("B", (chunks - 1 - turn) * pp + stage, m) for turn, m in turns]
    steady = [one for pair in zip(forward[warm:], backward, strict=False) for one in pair]
    return [*forward[:warm], *steady, *backward[total - warm :]]


def _round(pp: int, microbatches: int) -> int:
    """Microbatches in a round of the interleaved schedule."""
    return microbatches // max(1, microbatches // pp)


def _interleaved_warm(stage: int, pp: int, microbatches: int, chunks: int) -> int:
    """Forwards before the first pair of forward and backward: a round through all chunks but one, and two a stage behind."""
    return min((chunks - 1) * _round(pp, microbatches) + 2 * (pp - 1 - stage), microbatches * chunks)


def _zb_h1(stage: int, pp: int, microbatches: int, chunks: int) -> list[Pass]:
    """1F1B whose later stages put W off, so that I reaches the earlier ones sooner (Qi et al. 2024, ZB-H1).

    Stage s has begun s fewer microbatches than stage 0 and puts off s of its W: every stage then holds what 1F1B's first does.
    """
    order = _Writer()
    warm = min(pp - stage, microbatches)
    order.write(("F", stage), times=warm)
    for m in range(microbatches):
        order.write(("I", stage))
        if m >= stage:
            order.write_owed()
        if m + warm < microbatches:
            order.write(("F", stage))
    while order.owes:
        order.write_owed()
    return order.passes


def _zb_v(stage: int, pp: int, microbatches: int, chunks: int) -> list[Pass]:
    """Zero bubble over a V, whose turn makes the last stage's backward start at once (Qi et al. 2024, section 6).

    Written for as many microbatches as fill the V; where there are fewer, those that are not there are left out.
    """
    down, up = stage, 2 * pp - 1 - stage
    behind = pp - stage  # stages from here to the turn of the V, this one included
    full = max(2 * pp - 1, microbatches)
    order = _Writer()
    order.write(("F", down), times=2 * behind - 1)
    order.write(("F", up), ("F", down), times=stage)
    order.write(("F", up), ("I", up), ("W", up), times=behind)
    for k in range(full - pp):
        if k < full - pp - behind + 1:
            order.write(("F", down))
        order.write(("I", down), ("W", down), ("F", up), ("I", up), ("W", up))
    order.write(("I", down), ("I", up), times=stage)
    order.write(("I", down), ("W", down), times=behind)
    order.write(("W", up), times=stage)
    order.write(("W", down), times=stage)
    return [one for one in order.passes if one[2] < microbatches]


def _dualpipe_v(stage: int, pp: int, microbatches: int, chunks: int) -> list[Pass]:
    """A forward beside each backward over a V, and I and W only where the pipeline fills and drains (DeepSeek-AI 2025).

    Where the original runs a forward and a backward as one, to hide one's transfers behind the other, they stand here one
    behind the other. The last half of a stage's backwards are split.
    """
    down, up = stage, 2 * pp - 1 - stage
    ahead, behind = stage + 1, pp - 1 - stage  # stages from the open end to this one; from the next to the turn of the V
    order = _Writer()
    order.write(("F", down), times=2 * behind)
    order.write(("F", down), ("F", up), times=ahead)
    for _ in range(behind):
        order.write(("I", up))
        order.write_owed()
        order.write(("F", up))
    order.write(("F", down), ("B", up), ("F", up), ("B", down), times=microbatches - 2 * pp + ahead)
    order.write(("B", up), ("F", up), ("B", down), times=behind)
    for k in range(2 * ahead):
        order.write(("B" if k < ahead else "I", down if k % 2 else up))
    for _ in range(behind):
        order.write_owed()
        order.write(("I", down))
    while order.owes:
        order.write_owed()
    return order.passes


_ORDERS: dict[ScheduleName, Callable[[int, int, int, int], list[Pass]]] = {
    "naive": _naive,
    "gpipe": _gpipe,
    "1f1b": _1f1b,
    "interleaved": _interleaved,
    "zb-h1": _zb_h1,
    "zb-v": _zb_v,
    "dualpipe-v": _dualpipe_v,
}


def in_flight_bound(name: ScheduleName, stage: int, pp: int, microbatches: int, chunks: int = 1) -> int:
    """The most passes, of one microbatch through one chunk, whose activations a stage may hold at once.

    From the schedule's definition. Where a stage has several chunks, each pass holds that much less.
    """
    return {
        "naive": 1,
        "gpipe": microbatches,
        "1f1b": min(pp - stage, microbatches),
        "interleaved": min(_interleaved_warm(stage, pp, microbatches, chunks) + 1, microbatches * chunks),
        "zb-h1": min(pp, microbatches),
        "zb-v": min(2 * pp, 2 * microbatches),
        "dualpipe-v": 2 * pp + 1,
    }[name]


def messages_held(name: ScheduleName, pp: int, microbatches: int) -> int:
    """How many messages of one flow to one stage may be under way when the next is sent. One, wherever that can work.

    In an interleaved round of more microbatches than stages, the first of them come around the pipeline before stage 0 has
    begun the last, and wait there. Were the sender to wait as well, each stage would end up waiting for the next.
    """
    return max(1, _round(pp, microbatches) - pp + 1) if name == "interleaved" else 1
