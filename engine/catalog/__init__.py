"""Named models: small ones to run on this machine, and published ones with their sources."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches

from engine.catalog import experts, papers, released, small
from engine.spec import ModelSpec, RequestError, sentence

# By their makers, as people look for them. The first are to run here.
MAKERS: Mapping[str, Mapping[str, ModelSpec]] = {
    "": small.MODELS,
    "Meta": {**released.META, **experts.LLAMA4},
    "Qwen": released.QWEN,
    "Google": released.GOOGLE,
    "Mistral AI": released.MISTRAL,
    "Microsoft": released.MICROSOFT,
    "DeepSeek": experts.DEEPSEEK,
    "OpenAI": {**papers.OPENAI, **experts.GPT_OSS},
    "open data": released.OPEN,
    "others": released.OTHERS,
    "encoders": papers.ENCODERS,
}
MODELS: Mapping[str, ModelSpec] = {name: spec for models in MAKERS.values() for name, spec in models.items()}
# Other names of the same shapes.
ALIASES: Mapping[str, str] = {
    "llama3.1-8b": "llama3-8b",
    "llama3.1-70b": "llama3-70b",
    "llama3.1-405b": "llama3-405b",
    "llama3.3-70b": "llama3-70b",
}
SUCH_AS = ("gpt-tiny", "llama3-8b", "qwen3-32b", "gemma3-27b", "gpt3-175b")  # a few names, for where all are too many


def model(name: str) -> ModelSpec:
    """The model of that name. Raises `RequestError` with names that are like it, or with a few."""
    known = MODELS.get(ALIASES.get(name, name))
    if known is None:
        near = get_close_matches(name, [*MODELS, *ALIASES], n=5, cutoff=0.5) or SUCH_AS
        text = sentence(
            "there is no model {name!r}; there are {count}, such as {names}", name=name, count=len(MODELS), names=", ".join(near)
        )
        raise RequestError(text)
    return known


def maker_of(name: str) -> str:
    """The maker of a model in the catalog; "" for those to run on this machine."""
    return next(maker for maker, models in MAKERS.items() if name in models)


def name_of(spec: ModelSpec) -> str:
    """The name of a model in the catalog, or "custom"."""
    return next((name for name, known in MODELS.items() if known == spec), "custom")
