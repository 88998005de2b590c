"""What the server keeps for all sessions: where runs are, and the queue that runs them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from engine import store
from engine.launch.queue import RunQueue, RunState
from pages.shared.texts import Texts


@dataclass(frozen=True)
class Service:
    home: Path
    queue: RunQueue

    @property
    def texts(self) -> Texts:
        return Texts(self.home / ".texts")

    def saved(self, name: str) -> Path | None:
        """The saved run of that name. Only a name that the home lists is one, so no name leads out of it."""
        return next((folder for folder in store.listing(self.home) if folder.name == name), None)

    def find(self, run: str) -> RunState | Path | None:
        """What a link's `run` stands for: a run of this server by its id, or a saved run by its name."""
        return self.queue.watch(run) or self.saved(run)
