"""What a run does after its training steps, in words: for terminals, and to say what a rank was doing. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping

PHASES: Mapping[str, str] = {
    "generating": "generating text",
    "tracing": "tracing one more step",
    "parity": "comparing with the unsharded model",
    "saving": "saving the run",
}
