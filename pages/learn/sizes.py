"""Models and devices that lessons offer."""

from __future__ import annotations

from engine import catalog

# Published sizes of GPT, for which the papers' formulas of activations hold.
PUBLISHED_GPT = tuple(name for name, model in catalog.MODELS.items() if model.family == "gpt" and model.vocab > 50_000)
