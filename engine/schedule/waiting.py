"""Who waits for whom when a schedule runs: the rules of the executor, for every simulator.

A schedule is steps, stage by stage and in the order in which each stage does them. A step begins when its stage's step before
has ended and the step that it waits for has been seen. What takes a message in is seen where it begins. What hands one on is seen
when the message has come; its stage goes on at once.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

NOTHING = -1


def awaited(taken: NDArray[Any], handed: NDArray[Any], way: NDArray[Any], held: int) -> NDArray[Any]:
    """For which other step each waits, (n,), as its number; `NOTHING` for none, and its own number for what never comes.

    taken    (n,) the number of the message that a step takes in, `NOTHING` for most
    handed   (n,) the number of the message that a step hands on
    way      (n,) of a message handed on: the same number for those of one flow from one stage to one other
    held     how many messages of one way may be under way when the next is handed on

    What takes a message in waits for it to be handed on. What hands one on waits until of those before it, on the same way, at
    most `held` − 1 are still to be taken in.
    """
    steps = np.arange(len(taken))
    takers, senders = np.flatnonzero(taken != NOTHING), np.flatnonzero(handed != NOTHING)
    messages = 1 + max(taken.max(initial=0), handed.max(initial=0))
    sender, taker = np.full((2, messages), NOTHING)
    sender[handed[senders]], taker[taken[takers]] = senders, takers
    waits = np.full(len(taken), NOTHING)
    waits[takers] = sender[taken[takers]]
    order = np.argsort(way[senders], kind="stable")
    senders = senders[order]
    same = np.flatnonzero(way[senders[held:]] == way[senders[:-held]])
    waits[senders[same + held]] = taker[handed[senders[same]]]
    waiting = np.concatenate([takers, senders[same + held]])
    lost = waiting[waits[waiting] == NOTHING]
    waits[lost] = steps[lost]
    return waits
