"""What stands on a stage between its passes: a few amounts of each of its chunks.

What is there before a pass is a sum of such amounts, each so many times: `engine.predict.memory.walk` counts them. For one layout
an amount is blocks with names, for very many it is an array of bytes.

    received, gradient received   what a forward or a backward receives
    flight                        what a forward leaves behind in its chunk
    sent, gradient sent           a message that waits
    deferred, deferred more       what is there of a microbatch between its I and its W: of the only such one, of a further one
    after …                       the reduction over dp that a pass in that state leaves under way
    shared                        blocks that a chunk hands on to the next one of its stage and goes on to hold
    shared until W, …             of these, what the next one holds until its W; by the pass in which this one frees it
    lent …                        the block that a chunk lent to a message; by the pass in which the chunk freed it before
                                  the message was gone
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from engine.predict.memory.reading import Amounts, ChunkTrace
from engine.predict.memory.reducing import Pending

# What is under way after a pass in some of `STATES`, by the state that says which bucket it is. Of states that leave the same,
# the first that leaves anything with ZeRO 1.
AFTER = {"B": "B edge", "I edge": "I edge", "I": "I", "I more": "I more", "W": "W edge", "W more": "W more"}
LENT = {kind: f"lent {kind}" for kind in "BIW"}
SHARED_UNTIL_W = {kind: f"shared until W, {kind}" for kind in "IW"}
AMOUNTS = (
    "received", "flight", "gradient received", "sent", "gradient sent", "deferred", "deferred more",
    *(f"after {name}" for name in AFTER), "shared", *SHARED_UNTIL_W.values(), *LENT.values(),
)  # fmt: skip


def trace_amounts(does: ChunkTrace, behind: ChunkTrace | None) -> dict[str, Amounts]:
    """Those of `AMOUNTS` that a chunk's trace has, in blocks. `behind`: of the next chunk, where that is on the same stage."""
    begins = "I" if "I" in does.gradient_received else "B"
    ends = behind.input_ends.get("I", ()) if behind else ()
    until_w = sum(i < len(ends) and ends[i] == "W" for i in does.shared)
    frees = does.lent.ends if does.lent else {}
    handed_on = next(iter((behind or does).received or does.sent), None)
    return {
        "received": does.received,
        "sent": does.sent,
        "gradient received": does.gradient_received[begins],
        "gradient sent": does.gradient_sent[begins],
        "shared": {handed_on: len(does.shared)},
        **{name: {handed_on: until_w * (frees.get("I") == kind)} for kind, name in SHARED_UNTIL_W.items()},
        **{name: {does.lent.block: 1} if does.lent and kind in frees.values() else {} for kind, name in LENT.items()},
    }


def between_passes(
    net: Callable[[str], Any], messages: Mapping[str, Any], pending: Mapping[str, Pending], under_way: Callable[[int], Any]
) -> dict[str, Any]:
    """Those of `AMOUNTS` that follow from what a chunk's passes leave: anything that can be added and subtracted.

    `net`: what a pass in one of `STATES` leaves, less what it takes away. `messages`: the amounts of `trace_amounts`.
    `pending`: of each state. `under_way`: what the reduction of a bucket with that number takes; nothing for −1.
    """
    kept = net("F") - messages["sent"]
    turned = messages["received"] + kept + messages["gradient received"] - messages["gradient sent"]

    def deferred(state: str) -> Any:
        """A reduction is counted by itself for as long as it lasts, and not as what a pass leaves."""
        before, after = pending[state]
        return turned + net(state) + under_way(before) - under_way(after)

    return {
        **messages,
        "flight": kept,
        "deferred": deferred("I"),
        "deferred more": deferred("I more"),
        **{f"after {name}": under_way(pending[state].after) for name, state in AFTER.items()},
    }
