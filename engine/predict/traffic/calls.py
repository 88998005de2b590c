"""A predicted communication call: its collective, axis, number of calls and payload, and the bytes on the wire."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from engine.terms import Factor, Term
from engine.topology import CallAxis

# What a rank of n sends under the ring algorithm (`engine.parallel.comm`), as a formula for readers.
WIRE: dict[str, str] = {
    "all_reduce": "2 (n − 1)/n × payload",
    "reduce_scatter": "(n − 1)/n × payload",
    "all_gather": "(n − 1) × payload",
    "all_to_all": "(n − 1)/n × payload",
    "send_recv": "payload",
    "send": "payload",
    "recv": "0",
}


def wire_bytes(collective: str, payload: Any, n: Any) -> Any:
    """Bytes that a rank sends in one call, rounded down. `payload` in bytes; `n`: ranks of the group. Both may be arrays."""
    if collective == "all_reduce":
        return 2 * (n - 1) * payload // n
    if collective in ("reduce_scatter", "all_to_all"):  # the latter with equal parts
        return (n - 1) * payload // n
    return {"all_gather": n - 1, "send_recv": 1, "send": 1, "recv": 0}[collective] * payload


@dataclass(frozen=True)
class PredictedCall:
    """A number of equal calls. Values of factors may be arrays, for many layouts at once.

    times      how many calls: a product
    payload    bytes of one call: a product
    members    ranks of the group, if it is a part of the axis's; None: it is not
    spread     how many places along the axis these are apart; may be an array too
    between    the two stages of a transfer, or of the all-reduce of tied weights; None: the group is the axis's
    layer      the index of the recorded layer that makes the calls. Each layer that it represents makes as many. −1: no layer
    reduced    the calls belong to one reduction of the chunk's deferred weight gradients. Each reduction makes as many
    """

    axis: CallAxis
    collective: str
    phase: str
    name: str
    times: tuple[Factor, ...]
    payload: tuple[Factor, ...]
    between: tuple[int, int] | None = None
    layer: int = -1
    reduced: bool = False
    members: Any = None
    spread: Any = 1

    @property
    def calls(self) -> Any:
        """The number of calls."""
        return _product(self.times)

    @property
    def payload_bytes(self) -> Any:
        """The payload of one call."""
        return _product(self.payload)

    def ranks(self, degree: Any) -> Any:
        """How many are in the group. `degree`: of the axis."""
        return 2 if self.between else degree if self.members is None else self.members

    def made(self, ranks: Any) -> Any:
        """Whether they are made in a group of `ranks`, which may be an array. Of one rank, only ZeRO gathers values over dp."""
        return ranks > (0 if self.axis == "dp" and self.collective == "all_gather" else 1)

    @property
    def term(self) -> Term:
        """The payload bytes of all calls, as a term of a sum. Factors of 1 are left out."""
        factors = tuple(f for f in (*self.times, *self.payload) if f.value != 1)
        return Term(self.name, factors or (Factor("1", 1),))

    def often(self, *times: Factor) -> PredictedCall:
        """The same calls, more often by these factors."""
        return replace(self, times=(*self.times, *times))


def _product(factors: tuple[Factor, ...]) -> Any:
    out: Any = 1
    for factor in factors:
        out = out * factor.value
    return out
