"""What the passes of chunks do to memory, in numbers, for very many layouts at once: the spans of a trace, put together as ZeRO
has it.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.grid import Whole
from engine.ledger.keep import Ledgers
from engine.predict.bulk.actions import ACTIONS, form_actions
from engine.predict.bulk.traces import ChunkForm
from engine.predict.memory.amounts import AMOUNTS, between_passes
from engine.predict.memory.buckets import BucketSizes
from engine.predict.memory.reading import Amounts
from engine.predict.memory.update import SizedBucket, UpdateMemory, bytes_of
from engine.predict.structures import StructureGroup
from engine.spec import BYTES_OF, WorkloadSpec
from engine.terms import Factor

Real = NDArray[np.float64]

# What a stage holds all the time, and the optimizer's step twice; with that, all that a chunk has.
UPDATE = ("states", "norm", "step")
VALUES = (*ACTIONS, *AMOUNTS, *UPDATE)
_A = {name: i for i, name in enumerate(ACTIONS)}


class Chunks:
    """The chunks of one structure's layouts. `known`: `zero`, `alone`, `dp` and `dp of experts` of each, (n,)."""

    def __init__(self, group: StructureGroup, forms: list[ChunkForm], known: dict[str, Any], ledgers: Ledgers | None) -> None:
        self.known, self.does = known, form_actions(group.structure, ledgers)
        kinds = set(zip(known["zero"].tolist(), known["alone"].tolist(), strict=True))
        self.actions = {(form, *kind): self.does.actions(form, *kind) for form in forms for kind in kinds}
        self.runs, self._which = self.does.runs(), group.which
        self._figures = self.does.figures(group.values, int(group.which.max()) + 1)
        several, sizes = self.does.buckets(), group.sizes(np.arange(len(group.rows)))
        of_experts = known["dp of experts"] if "M" in sizes else None  # ranks share them
        self.buckets = np.empty((len(several), 2, len(group.rows)))  # numbers of each on a rank, and in one replica's share
        for (bucket, part), out in zip(several, self.buckets, strict=True):
            found = BucketSizes(bucket, part, sizes, known["dp"], of_experts)
            out[0], out[1] = found.size.value, found.share.value

    def figures(self, here: slice) -> list[Real]:
        """The sizes of blocks, what each span leaves, and the most that it adds. (sizes or spans, layouts) each"""
        return [figures[:, self._which[here]] for figures in self._figures]


class ChunkValues:
    """`VALUES` of forms of chunk, for the layouts `here`, which have one ZeRO stage, and experts that ZeRO cuts or does not."""

    def __init__(self, chunks: Chunks, workload: WorkloadSpec, forms: list[ChunkForm], here: slice) -> None:
        self._does, self.zero = chunks.does, int(chunks.known["zero"][here.start])
        whole, share = chunks.buckets[:, :, here].swapaxes(0, 1)  # (buckets, n) each
        e, gradient = BYTES_OF[workload.precision], BYTES_OF[workload.gradient_precision]
        width = gradient if self.zero == 1 else e  # bytes of a number that a reduction receives
        self._under_way = share * width + (whole * e if self.zero >= 2 else 0.0)
        memory = UpdateMemory(workload, self.zero, Factor("e", e), Factor("g", gradient))
        every, nothing = SizedBucket(Factor("Ψ", whole), Factor("Ψ/dp", share)), np.zeros_like(share)
        # Of each bucket what stands, and its update.
        self._stands, self._update = nothing + bytes_of(memory.standing(every)), nothing + bytes_of(memory.update(every))
        alone = bool(chunks.known["alone"][here.start])
        self._actions = {form: chunks.actions[form, self.zero, alone] for form in forms}
        runs = sorted({run for actions in self._actions.values() for row in actions.rows for run in row})
        self._place = {run: place for place, run in enumerate(runs)}
        self._sizes, spans, highest = chunks.figures(here)
        blocks = np.stack([share * width, -share * width, whole * e, -whole * e], axis=1)
        blocks = blocks.reshape(-1, blocks.shape[-1])[::-1]  # counted from the end
        nothing = np.zeros_like(spans[:1])
        leaves, tops = np.concatenate([nothing, spans, blocks]), np.concatenate([nothing, highest, np.maximum(blocks, 0)])
        self._leaves, self._tops = joined(leaves, tops, [chunks.runs[run] for run in runs])

    def of(self, form: ChunkForm, which: Whole, between: Whole) -> Real:
        """Of one form in the layouts `which`. `between`: layers between a chunk's first and last of each kind, (n, 2).

        (values, n)
        """
        actions, trace, count = self._actions[form], self._does.of(form, self.zero >= 2), len(which)
        times = np.stack([np.ones(count), *between.T])
        rows = [[self._place[run] for run in row] for row in actions.rows]
        leaves, tops = joined(self._leaves[:, which], self._tops[:, which], rows, actions.letters, times)
        found = between_passes(
            lambda state: leaves[actions.which[_A[state]]],
            {name: self._total(blocks, which) for name, blocks in trace.amounts.items()},
            actions.pending,
            lambda bucket: self._under_way[actions.uses[bucket].number, which] if bucket >= 0 else 0.0,
        )
        out = np.zeros((len(VALUES), count))
        out[: len(ACTIONS)] = tops[actions.which]
        for number, name in enumerate(AMOUNTS, len(ACTIONS)):
            out[number] = found[name]
        numbers, parts, counted = np.array(actions.uses).T
        buckets, often = (numbers[:, None], which), times[parts]  # (buckets, n) each
        out[-len(UPDATE) :] = (
            (self._stands[buckets] * often).sum(0),
            8 * (often * counted[:, None]).sum(0),  # two numbers of four bytes
            (self._update[buckets] * often).sum(0),
        )
        return out

    def _total(self, blocks: Amounts, which: Whole) -> Any:
        """Bytes of so many blocks of each size."""
        return sum(amount * self._sizes[number - 1, which] for number, amount in blocks.items() if amount)


def joined(
    leaves: Real, tops: Real, several: Sequence[Sequence[int]], letters: Sequence[Sequence[int]] = (), times: Real | None = None
) -> tuple[Real, Real]:
    """What each of several rows of things leaves, and the most that it ever adds, 0 at least: (rows, n) each.

    `leaves`, `tops`: the same of each thing, (things, n). `letters`: of each thing in a row, which of `times`, (letters, n), says
    how often it is there. All rows take a step at a time, the longest first.
    """
    order = sorted(range(len(several)), key=lambda row: -len(several[row]))
    level, highest = np.zeros((2, len(several), leaves.shape[1]))
    for number, step in enumerate(zip_longest(*(several[row] for row in order))):
        things = [thing for thing in step if thing is not None]
        now, top, left = level[: len(things)], highest[: len(things)], leaves[things]
        reached = now + tops[things]
        if times is not None:
            often = times[[letters[row][number] for row in order[: len(things)]]]
            reached += np.maximum((often - 1) * left, 0)  # the highest point is in the first or in the last of them
            reached *= often > 0
            left *= often
        np.maximum(top, reached, out=top)
        now += left
    back = np.argsort(order)
    return level[back], highest[back]
