"""A predicted call through the door: which collective, where, how often, with what payload; and what that sends."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

from engine.predict.terms import Factor, Term
from engine.topology import Axis

# What a rank sends under the ring algorithm for n ranks (`engine.parallel.comm`), for people to read.
WIRE: dict[str, str] = {
    "all_reduce": "2 (n − 1)/n × payload",
    "reduce_scatter": "(n − 1)/n × payload",
    "all_gather": "(n − 1) × payload",
    "send": "payload",
    "recv": "0",
}


def wire_bytes(collective: str, payload: Any, n: Any) -> Any:
    """What one call sends, in whole bytes. `payload` and `n`, the ranks of the group, may be arrays."""
    if collective == "all_reduce":
        return 2 * (n - 1) * payload // n
    if collective == "reduce_scatter":
        return (n - 1) * payload // n
    return {"all_gather": n - 1, "send": 1, "recv": 0}[collective] * payload


@dataclass(frozen=True)
class Call:
    """Calls that are alike: `times` and `payload` (bytes of one) are products.

    `between`: the stages of a transfer, or of the tie; otherwise the group is the axis's.
    """

    axis: Axis
    collective: str
    phase: str
    name: str
    times: tuple[Factor, ...]
    payload: tuple[Factor, ...]
    between: tuple[int, int] | None = None

    @property
    def calls(self) -> int:
        return prod(factor.value for factor in self.times)

    @property
    def payload_bytes(self) -> int:
        """Of one call."""
        return prod(factor.value for factor in self.payload)

    @property
    def term(self) -> Term:
        """Payload bytes of all of them, as a sum's term. A factor that is 1 goes without saying."""
        factors = tuple(f for f in (*self.times, *self.payload) if f.value != 1)
        return Term(self.name, factors or (Factor("1", 1),))
