"""Models and devices that lessons offer."""

from __future__ import annotations

from engine import catalog
from engine.devices import DEVICES

# Published sizes of GPT, for which the papers' formulas of activations hold.
PUBLISHED_GPT = tuple(name for name, model in catalog.MODELS.items() if model.family == "gpt" and model.vocab > 50_000)

PUBLISHED = tuple(name for name, model in catalog.MODELS.items() if model.vocab > 2_000)

# What one of each device holds, smallest first.
CARDS = {name: device.memory_bytes for name, device in sorted(DEVICES.items(), key=lambda d: d[1].memory_bytes)}


def card(name: str) -> int:
    """Bytes that a device of that name holds."""
    return CARDS[name]
