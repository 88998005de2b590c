"""What a rank reports to its launcher, and the phases of a run besides its training steps. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

PHASES: Mapping[str, str] = {
    "generating": "generating text",
    "tracing": "tracing one more step",
    "parity": "comparing with the unsharded model",
    "saving": "saving the run",
}


class LauncherLink(Protocol):
    """A rank's connection to its launcher."""

    def report(self, event: dict[str, Any]) -> None:
        """Send an event that a user wants to see. It must be JSON-able."""
        ...

    def set_status(self, status: str) -> None:
        """Note what this rank is about to do, for the message if it fails there. Called for every action."""
        ...


class SilentLink:
    """The link of a rank without a launcher. It ignores everything."""

    def report(self, event: dict[str, Any]) -> None: ...

    def set_status(self, status: str) -> None: ...


def begin_phase(link: LauncherLink, rank: int, phase: str) -> None:
    """Set the status of this rank, and on rank 0 report that the run enters the phase (a key of `PHASES`)."""
    link.set_status(PHASES[phase])
    if rank == 0:
        link.report({"event": "phase", "phase": phase})
