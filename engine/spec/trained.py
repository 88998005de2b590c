"""The model whose trained weights come with this program: `engine.weights` reads them."""

from __future__ import annotations

from engine.spec.model import ModelSpec

TRAINED_NAME = "gpt-mini"
# Layers and heads for up to 8 stages and 8 slices; as wide as can be trained on a laptop's core within an hour.
TRAINED = ModelSpec(layers=8, hidden=64, heads=8, seq=128)
