"""The models and devices in lessons."""

from __future__ import annotations

from engine import catalog
from engine.devices import DEVICES

# Published GPT models, for which the papers' formulas of activations are valid.
PUBLISHED_GPT = tuple(name for name, model in catalog.MODELS.items() if model.family == "gpt" and model.vocab > 50_000)

PUBLISHED = tuple(name for name, model in catalog.MODELS.items() if model.vocab > 2_000)

# Device → memory of one, the smallest first.
CARDS = {name: device.memory_bytes for name, device in sorted(DEVICES.items(), key=lambda d: d[1].memory_bytes)}


def card(name: str) -> int:
    """Memory of the device of that name, in bytes."""
    return CARDS[name]
