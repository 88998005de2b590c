"""What there is of a bucket all the time, and what the optimizer's step takes for it: in one layout, or in arrays of layouts."""

from __future__ import annotations

from typing import Any, NamedTuple

from engine.optimizer import optimizer_of
from engine.predict.memory.blocks import BlockKind, size_of
from engine.predict.memory.buckets import BucketSizes
from engine.spec import BYTES_OF, WorkloadSpec, sentence
from engine.terms import Factor

FOUR = Factor("4", 4)


class SizedBucket(NamedTuple):
    """What of a bucket matters here. In one layout it is a `BucketSizes`; sizes may be arrays of layouts."""

    size: Factor
    share: Factor
    name: str = ""
    layered: bool = False


class UpdateMemory:
    """`e`, `g`: bytes of a parameter, and of a number in which gradients are accumulated."""

    def __init__(self, workload: WorkloadSpec, zero: int, e: Factor, g: Factor) -> None:
        self.workload, self.zero, self.e, self.g = workload, zero, e, g
        updated = BYTES_OF[workload.update_precision]
        self.updated = Factor(str(updated), updated)  # bytes of a number that the optimizer updates, and of one of its states

    def standing(self, bucket: SizedBucket | BucketSizes) -> list[BlockKind]:
        """Parameters, gradients, the optimizer's states."""
        name, share, optimizer = bucket.name, bucket.share, optimizer_of(self.workload)
        parameters, gradients = (share if self.zero >= stage else bucket.size for stage in (3, 2))
        found: list[tuple[str, str, tuple[Factor, ...]]] = [
            ("parameters", sentence("weights of {bucket}", bucket=name), (parameters, self.e)),
            ("gradients", sentence("gradients of {bucket}", bucket=name), (gradients, self.g)),
        ]
        if self.workload.master_bytes:
            found.append(("optimizer", sentence("fp32 copy of {bucket}", bucket=name), (share, FOUR)))
        found += [("optimizer", state(name), (share, self.updated)) for state in optimizer.states(self.workload)]
        if optimizer.counts_steps:
            found.append(("optimizer", sentence("count of steps of {bucket}", bucket=name), (FOUR,)))
        return [BlockKind(category, what, factors, bucket.layered) for category, what, factors in found]

    def update(self, bucket: SizedBucket | BucketSizes) -> list[BlockKind]:
        """The optimizer is given copies where gradients are of another type than what it updates."""
        if self.g.value == self.updated.value:
            return []
        name = sentence("gradients of {bucket}, for the optimizer", bucket=bucket.name)
        return [BlockKind("temporary", name, (bucket.share, self.updated), bucket.layered)]


def bytes_of(kinds: list[BlockKind]) -> Any:
    """One of each."""
    return sum(size_of(kind.factors) for kind in kinds)
