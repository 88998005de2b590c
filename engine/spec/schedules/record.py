"""The form of a schedule's record. Every fact about a pipeline schedule is a field of it.

In the functions of a record, p is the number of stages, m of microbatches, and v of chunks of a stage. Each may be a number, or
an array with one entry for each layout. The result has the same shape.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from engine.spec.sentence import Sentence

Script = list[tuple[str, Any]]
"""The passes of a stage: a list of pairs of entries and how often they repeat. That is a number, or (k,), one for each of k
orders. A number below 1 means 0.

An entry is a kind of pass: F, B, I or W. It runs the next microbatch for which the stage has not run it yet. B is I and W
together. Under a V-shaped schedule an entry has an arrow: F↓ belongs to the chunk on the way down, F↑ to the chunk on the way up.
A W without an arrow belongs to the earliest I whose W has not run yet.
"""


class MicrobatchRule(NamedTuple):
    """A schedule's rule on the number of microbatches."""

    holds: Callable[[Any, Any], Any]  # (p, m) → whether m fits
    choices: Callable[[int, int], tuple[int, ...]]  # (p, m) → numbers that fit, nearest first
    refusal: Callable[[int, int, tuple[int, ...]], Sentence]  # (p, m, choices) → why m does not fit


class PipelineWork(NamedTuple):
    """The arguments of a schedule's closed form: counts, and seconds of one microbatch. Numbers or arrays, (n,).

    The slowest stage determines the length of the pipeline. `others`: the sum of all other stages. Its parts are `forward`,
    `backward` (I and recompute) and `weights` (W).
    """

    p: Any
    m: Any
    v: Any
    slowest: Any
    slowest_forward: Any
    slowest_weights: Any
    others: Any
    forward: Any
    backward: Any
    weights: Any
    other_end: Any  # embedding or head, if it is on a stage that is not the slowest
    message: Any  # from one stage to the next

    @property
    def least_fill(self) -> Any:
        """Seconds of filling and draining if W is deferred: F and I of the first microbatch on all other stages, less the
        deferred W of all other microbatches on the slowest stage, which run meanwhile.
        """
        return self.others - self.weights - (self.m - 1) * self.slowest_weights


def waits_twice_a_stage(work: PipelineWork) -> Any:
    """Seconds of waiting for messages: one activation and one gradient for each stage but the first."""
    return 2 * (work.p - 1) * work.message


def waits_each_round(work: PipelineWork) -> Any:
    """The same if at most p microbatches are in flight: then each further round of p microbatches waits for messages too."""
    once = waits_twice_a_stage(work)
    return once + once / work.p * np.maximum(0, work.m - work.p)


@dataclass(frozen=True)
class ScheduleFacts:
    """All facts about a schedule.

    title, summary          its name, and one sentence on what it does, for readers
    script                  (s, p, m, v) → the passes of stage s, in order
    in_flight               (s, p, m, v) → the most passes, of one microbatch through one chunk, whose activations stage s holds
    bubble                  the formula of its bubble, a share of total time, with forward 1, backward 2, I 1 and W 1
    fill                    seconds of filling and draining, in which the slowest stage is idle
    waits                   seconds of waiting for messages
    closed_from             p → the fewest microbatches for which `bubble` holds; 1 if it always holds
    chunks                  chunks of a stage; None: two or more
    v_shaped                chunks go down the stages and back up, in the shape of a V; otherwise down the stages again and again
    chunk_and_microbatch    (s, p, m, v, whether it is forward, n) → chunk and microbatch of the n-th forward or backward of stage
    s;
                            for schedules with several chunks that are not V-shaped
    memory_repeats_after    (p, m) → the number of microbatches that is enough to reach the memory peak; None if every microbatch
                            raises the peak
    messages_held           (p, m) → how many messages of one flow to one stage may be sent and not yet received when the next is
                            sent; 1 if that works
    microbatch_rule         the rule on the number of microbatches, if there is one
    reductions              (p, m, s, run) → how often in a step all gradients of a layer are complete, for a schedule that splits
                            backward; run is 0 for the chunk on the way down a V, and 1 for the chunk on the way up
    elsewhere               its name in "megatron", "torchtitan" and "deepspeed"; a framework that is missing does not have it
    nearest                 the schedule that such a framework runs instead, if that is not 1F1B
    """

    title: str
    summary: Sentence
    script: Callable[[Any, int, Any, int], Script]
    in_flight: Callable[[Any, Any, Any, Any], Any]
    bubble: str
    fill: Callable[[PipelineWork], Any]
    memory_repeats_after: Callable[[Any, Any], Any] | None
    waits: Callable[[PipelineWork], Any] = waits_twice_a_stage
    closed_from: Callable[[int], int] = lambda p: 1
    chunks: int | None = 1
    v_shaped: bool = False
    chunk_and_microbatch: Callable[[Any, int, Any, int, Any, Any], tuple[Any, Any]] | None = None
    messages_held: Callable[[Any, Any], Any] = lambda p, m: 1
    microbatch_rule: MicrobatchRule | None = None
    reductions: Callable[[Any, Any, Any, Any], Any] | None = None
    elsewhere: Mapping[str, str] = field(default_factory=dict)
    nearest: Mapping[str, str] = field(default_factory=dict)

    @property
    def splits(self) -> bool:
        """Whether backward is split into I and W, at least for some microbatches."""
        return self.reductions is not None

    @property
    def plain(self) -> bool:
        """Whether stages have one chunk, and backward is not split. Then the middle of a stage's step repeats."""
        return self.chunks == 1 and not self.splits

    @property
    def least_chunks(self) -> int:
        return self.chunks or 2

    def fits_chunks(self, v: Any) -> Any:
        """Whether a stage may have v chunks."""
        return v >= 2 if self.chunks is None else v == self.chunks

    def fits_microbatches(self, p: Any, m: Any) -> Any:
        """Whether a step may have m microbatches."""
        return self.microbatch_rule.holds(p, m) if self.microbatch_rule else m >= 1

    def enough_microbatches(self, p: Any, m: Any) -> Any:
        """The number of microbatches, at most m, that is enough to reach the memory peak."""
        return m if self.memory_repeats_after is None else np.minimum(m, self.memory_repeats_after(p, m))

    def pipeline(self, work: PipelineWork) -> tuple[Any, Any]:
        """The closed form: seconds from the start of the first pass to the end of the last, and seconds of waiting in it."""
        one_stage = work.p == 1
        fill, waits = np.where(one_stage, 0.0, self.fill(work)), np.where(one_stage, 0.0, self.waits(work))
        return work.m * work.slowest + fill + waits, waits

    def bubble_share(self, p: Any, m: Any, v: Any = 1) -> Any:
        """The bubble in closed form, a share of total time: the value of `bubble`, if m is at least `closed_from`.

        It is `pipeline` with the papers' unit times, equal stages, and messages that take no time.
        """
        others = 1.0 * (p - 1)
        work = PipelineWork(p, m, v, 3.0, 1.0, 1.0, 3 * others, others, others, others, 0.0, 0.0)
        length, _ = self.pipeline(work)
        return 1 - 3 * m / length
