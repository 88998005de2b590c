"""An active run, as the queue keeps it. Imports no torch."""

from __future__ import annotations

import time

from engine.launch.draft import Draft
from engine.launch.queue.waits import Going
from engine.spec import RunSpec


class Active(Going):
    """An active run."""

    def __init__(self, id: str, spec: RunSpec, draft: Draft) -> None:
        super().__init__(spec, time.monotonic())
        self.id, self.draft = id, draft
        self.sent = False  # whether the host got the request; before that it imports torch
        self.taken = False  # whether the host has started it
        self.ending = False  # whether the host was asked to cancel it

    @property
    def name(self) -> str:
        """Its name in requests and events of the host."""
        return self.draft.name
