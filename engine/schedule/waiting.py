"""Which step waits for which when a schedule runs: the executor's rules, for every simulator.

A schedule is a list of steps, stage by stage, in the order in which each stage runs them. A step begins when the step before it
on its stage has ended and its dependency has released it. A receive releases its dependents when it begins. A send releases its
dependents when the message has arrived; its own stage goes on at once.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

NOTHING = -1


def dependencies(received: NDArray[Any], sent: NDArray[Any], channel: NDArray[Any], held: int) -> NDArray[Any]:
    """The number of the step that each step waits for, (n,). `NOTHING`: none. Its own number: one that never comes.

    received   (n,) the number of the message that a step receives, `NOTHING` for most steps
    sent       (n,) the number of the message that a step sends, `NOTHING` for most steps
    channel    (n,) for a send: a number for its flow and its pair of stages. Messages of one channel arrive in order
    held       how many messages of one channel may be sent and not yet received when the next is sent

    A receive waits for the send of its message. A send waits until at most `held` − 1 earlier messages of its channel have not
    been received.
    """
    steps = np.arange(len(received))
    receivers, senders = np.flatnonzero(received != NOTHING), np.flatnonzero(sent != NOTHING)
    messages = 1 + max(received.max(initial=0), sent.max(initial=0))
    sender, receiver = np.full((2, messages), NOTHING)
    sender[sent[senders]], receiver[received[receivers]] = senders, receivers
    waits = np.full(len(received), NOTHING)
    waits[receivers] = sender[received[receivers]]
    order = np.argsort(channel[senders], kind="stable")
    senders = senders[order]
    same = np.flatnonzero(channel[senders[held:]] == channel[senders[:-held]])
    waits[senders[same + held]] = receiver[sent[senders[same]]]
    waiting = np.concatenate([receivers, senders[same + held]])
    lost = waiting[waits[waiting] == NOTHING]
    waits[lost] = steps[lost]
    return waits
