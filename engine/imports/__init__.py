"""Other programs' configurations as a request: Hugging Face's `config.json`."""

from __future__ import annotations

from engine.imports import huggingface
from engine.imports.fields import LARGEST, Imported
from engine.spec import ModelSpec, RequestError, parsed, sentence, too_large

__all__ = ["ENDINGS", "LARGEST", "Imported", "read"]

ENDINGS = ("json",)  # of files


def read(content: bytes, name: str) -> Imported:
    """What a file says. `name`: of the file, for sentences. Raises `RequestError`.

    A model as this program writes it, such as in `search --json`, is read too.
    """
    if len(content) > LARGEST:
        raise RequestError(too_large(name, len(content), LARGEST))
    entries = parsed(content, name)
    if not isinstance(entries, dict):
        raise RequestError(sentence("{name} is not an object with entries such as hidden_size", name=name))
    try:
        if "family" in entries and "model_type" not in entries:
            return Imported(ModelSpec.model_validate(entries))
        return huggingface.model(entries)
    except RequestError as error:
        raise RequestError(sentence("{name}: {error}", name=name, error=error.sentence)) from error
