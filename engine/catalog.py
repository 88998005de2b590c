"""Named models. Sizes to run here, and sources for the published ones."""

from __future__ import annotations

from engine.spec import ModelSpec, RequestError

MODELS: dict[str, ModelSpec] = {
    "gpt-tiny": ModelSpec(layers=4, hidden=64, heads=4, vocab=256, seq=64),
    "gpt-small": ModelSpec(layers=8, hidden=256, heads=8, vocab=256, seq=128),
    "gpt-medium": ModelSpec(layers=12, hidden=512, heads=8, vocab=1024, seq=256),
    # Radford et al. 2019, Language Models are Unsupervised Multitask Learners, table 2.
    "gpt2-124m": ModelSpec(layers=12, hidden=768, heads=12, vocab=50257, seq=1024),
}


def model(name: str) -> ModelSpec:
    """The model of that name. Raises `RequestError` that lists the names."""
    if name not in MODELS:
        raise RequestError(f"there is no model {name!r}; there are {', '.join(MODELS)}")
    return MODELS[name]


def name_of(spec: ModelSpec) -> str:
    """The catalog's name of a shape, or "custom"."""
    return next((name for name, known in MODELS.items() if known == spec), "custom")
