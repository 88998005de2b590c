"""A predicted call to other ranks: which collective, where, how often, with what payload; and what that sends."""

from __future__ import annotations

from dataclasses import dataclass, replace
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
class PredictedCall:
    """Calls that are alike: `times` and `payload` (bytes of one) are products. Values may be arrays, of many layouts at once.

    `between`: the stages of a transfer, or of the tie; otherwise the group is the axis's. `layer`: the recorded layer whose
    repetitions make as many more of them; −1: none. `reduced`: there are as many for each reduction of the chunk's deferred
    gradients.
    """

    axis: Axis
    collective: str
    phase: str
    name: str
    times: tuple[Factor, ...]
    payload: tuple[Factor, ...]
    between: tuple[int, int] | None = None
    layer: int = -1
    reduced: bool = False

    @property
    def calls(self) -> Any:
        """How many."""
        return _product(self.times)

    @property
    def payload_bytes(self) -> Any:
        """Of one call."""
        return _product(self.payload)

    @property
    def term(self) -> Term:
        """Payload bytes of all of them, as a sum's term. A factor that is 1 goes without saying."""
        factors = tuple(f for f in (*self.times, *self.payload) if f.value != 1)
        return Term(self.name, factors or (Factor("1", 1),))

    def often(self, *times: Factor) -> PredictedCall:
        """So many times as often."""
        return replace(self, times=(*self.times, *times))


def _product(factors: tuple[Factor, ...]) -> Any:
    out: Any = 1
    for factor in factors:
        out = out * factor.value
    return out
