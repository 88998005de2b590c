"""Other programs' configurations as a request: of Hugging Face, Megatron-LM, torchtitan and DeepSpeed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from engine.imports import deepspeed, huggingface, megatron, torchtitan
from engine.imports.fields import LARGEST, LARGEST_SCRIPT, Imported, VocabularyError
from engine.spec import ModelSpec, RequestError, parsed, sentence, too_large

__all__ = ["ENDINGS", "LARGEST", "Imported", "VocabularyError", "read"]

ENDINGS = ("json", "sh", "toml", "txt")  # of files


def read(content: bytes, name: str, vocab: int | str | None = None) -> Imported:
    """What a file says, whichever program it is for. `name`: of the file, for sentences. Raises `RequestError`.

    A model as this program writes it, such as in `search --json`, is read too. `vocab`: tokens of the vocabulary, for a script
    that leaves that to its tokenizer. Without it, such a script raises `VocabularyError`.
    """
    if len(content) > LARGEST:
        raise RequestError(too_large(name, len(content), LARGEST))
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        raise RequestError(sentence("{name} is not text in UTF-8", name=name)) from error
    is_job_file = name.endswith(".toml")
    if is_job_file or (" --" in f" {text}" and not text.lstrip().startswith("{")):
        if len(content) > LARGEST_SCRIPT:
            raise RequestError(too_large(name, len(content), LARGEST_SCRIPT))
        if is_job_file:
            return _named(lambda: torchtitan.request(text, name), name)
        return _named(lambda: megatron.request(text, name, vocab), name)
    entries = parsed(text, name)
    if not isinstance(entries, dict):
        raise RequestError(sentence("{name} is not an object with entries such as hidden_size", name=name))
    return _named(lambda: _of_json(entries), name)


def _of_json(entries: dict[str, Any]) -> Imported:
    if any(key in entries for key in deepspeed.KNOWN_BY):
        return deepspeed.request(entries)
    if "family" in entries and "model_type" not in entries:
        return Imported(ModelSpec.model_validate(entries))
    return huggingface.model(entries)


def _named(read: Callable[[], Imported], name: str) -> Imported:
    """What `read` returns. Its errors begin with the name of the file."""
    try:
        return read()
    except RequestError as error:
        if str(error).startswith(name):
            raise
        raise type(error)(sentence("{name}: {error}", name=name, error=error.sentence)) from error
