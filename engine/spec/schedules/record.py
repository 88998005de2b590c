"""What is to be said of a pipeline schedule, and where it may stand: every fact about it is a field of its record.

In the functions of a record p is the number of stages, m of microbatches and v of chunks on a stage. Each may be a number or an
array, one entry a layout, and so is what comes out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from engine.spec.sentence import Sentence

Script = list[tuple[str, Any]]
"""What a stage does: entries, and how many times over these come, which is a number or one for each of several orders, (k,).
A count below one is none.

An entry is a kind of pass, F, B, I or W, and takes the next microbatch that has not had it. B is I and W in one. Over a V it has
an arrow: F↓ is of the chunk on the way down, F↑ of the one on the way back up. A W without an arrow is that of the earliest I
that has had none.
"""


class MicrobatchRule(NamedTuple):
    """What a schedule asks of the number of microbatches."""

    holds: Callable[[Any, Any], Any]  # of p and m
    choices: Callable[[int, int], tuple[int, ...]]  # numbers that would do, nearest first
    refusal: Callable[[int, int, tuple[int, ...]], Sentence]  # why not, given p, m and the choices


class PipelineWork(NamedTuple):
    """Seconds of one microbatch, from which a schedule's closed form is made up. Numbers or arrays, (n,).

    The slowest stage sets the pace. `others` are all other stages together. `forward`, `backward` (I, with what is computed
    again) and `weights` (W) are their parts.
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
    other_end: Any  # embedding or head, on a stage that is not the slowest
    message: Any  # of one stage to the next

    @property
    def least_fill(self) -> Any:
        """Filling and draining where W is put off: the first microbatch goes down and back, and the others follow it out."""
        return self.others - self.weights - (self.m - 1) * self.slowest_weights


def waits_twice_a_stage(work: PipelineWork) -> Any:
    """Seconds of waiting for messages: one down and one back for each stage but one."""
    return 2 * (work.p - 1) * work.message


def waits_each_round(work: PipelineWork) -> Any:
    """The same where only p microbatches are in flight: a message's time is waited for in each round of p."""
    once = waits_twice_a_stage(work)
    return once + once / work.p * np.maximum(0, work.m - work.p)


@dataclass(frozen=True)
class ScheduleFacts:
    """All that is known of a schedule by its name.

    title, summary          what it is called, and one sentence on what it does, for readers
    script                  its order: what stage s does, of (s, p, m, v)
    in_flight               the most passes, of one microbatch through one chunk, whose activations stage s holds: of (s, p, m, v)
    bubble                  its bubble as a formula, as a share of total time, at forward 1, backward 2 and each half of it 1
    fill                    seconds of filling and draining, in which the slowest stage idles
    waits                   seconds that are spent on waiting for messages
    closed_from             the fewest microbatches for which `bubble` holds, of p; 1 if for any
    chunks                  on a stage; None: two or more
    v_shaped                chunks go down the stages and back up, in the shape of a V; otherwise round and round
    chunk_and_microbatch    of several chunks that go round: which a stage's n-th pass of its direction takes, of
                            (s, p, m, v, whether it is forward, n)
    memory_repeats_after    so many microbatches that more of them bring no higher instant of memory, of (p, m); None where each
                            holds more than the one before
    messages_held           how many messages of one flow to one stage may be under way when the next is sent, of (p, m): one,
                            wherever that can work
    microbatch_rule         what it asks of their number, if anything
    reductions              where backward is split into I and W: how often a step has the gradients of a layer whole, of
                            (p, m, s, run), where run is 0 for the chunk on the way down a V and 1 for the one on the way up
    elsewhere               its name in other frameworks, by theirs: "megatron", "torchtitan", "deepspeed"; missing if it has none
    nearest                 what such a framework runs in its place, where that is not 1F1B
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
        """Whether backward is split into I and W, at least of some microbatches."""
        return self.reductions is not None

    @property
    def plain(self) -> bool:
        """One chunk a stage and B in one piece: then the middle of a stage's step repeats, and may be left out."""
        return self.chunks == 1 and not self.splits

    @property
    def least_chunks(self) -> int:
        return self.chunks or 2

    def fits_chunks(self, v: Any) -> Any:
        """Whether a stage may have so many."""
        return v >= 2 if self.chunks is None else v == self.chunks

    def fits_microbatches(self, p: Any, m: Any) -> Any:
        return self.microbatch_rule.holds(p, m) if self.microbatch_rule else m >= 1

    def enough_microbatches(self, p: Any, m: Any) -> Any:
        """Of m, how many there need be for memory's highest instant to be among theirs."""
        return m if self.memory_repeats_after is None else np.minimum(m, self.memory_repeats_after(p, m))

    def pipeline(self, work: PipelineWork) -> tuple[Any, Any]:
        """Seconds from the first pass to the last, and how much of it is waiting for messages: the closed form."""
        alone = work.p == 1
        fill, waits = np.where(alone, 0.0, self.fill(work)), np.where(alone, 0.0, self.waits(work))
        return work.m * work.slowest + fill + waits, waits

    def bubble_share(self, p: Any, m: Any, v: Any = 1) -> Any:
        """The closed form of the bubble, as a share of total time: `bubble` in numbers, for `closed_from` microbatches and more.

        It is `pipeline` at the papers' unit times, of stages that are all alike and messages that take no time.
        """
        others = 1.0 * (p - 1)
        work = PipelineWork(p, m, v, 3.0, 1.0, 1.0, 3 * others, others, others, others, 0.0, 0.0)
        length, _ = self.pipeline(work)
        return 1 - 3 * m / length
