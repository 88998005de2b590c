"""The models and devices in lessons."""

from __future__ import annotations

from engine import catalog
from engine.devices import DEVICES

# Published GPT models, for which the papers' formulas of activations are valid.
PUBLISHED_GPT = tuple(catalog.MAKERS["OpenAI"])

PUBLISHED = (*PUBLISHED_GPT, *catalog.MAKERS["encoders"], "llama3-8b", "llama3-70b", "llama3-405b")

# Device → memory of one, the smallest first.
CARDS = {name: device.memory_bytes for name, device in sorted(DEVICES.items(), key=lambda d: d[1].memory_bytes)}


def card(name: str) -> int:
    """Memory of the device of that name, in bytes."""
    return CARDS[name]
