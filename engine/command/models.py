"""The model of a command: a named one, or one that a file describes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from engine import catalog, files, imports
from engine.command.output import complain
from engine.imports import Imported
from engine.spec import ModelSpec, RequestError, sentence

_FILES = "a script or arguments of Megatron-LM, a job file of torchtitan"
HELP = (
    f"a named model, such as {', '.join(catalog.SUCH_AS)} (`models` lists them), or a file: a config.json of Hugging Face, or "
    f"{_FILES}, which bring their layout and workload too"
)
SETTINGS_HELP = f"a file with layout and workload: a configuration of DeepSpeed, {_FILES}; other flags override what it says"


def imported(named: str, vocab: int | str | None = None) -> Imported:
    """What the name or the file says. Its remarks are printed to standard error. Raises `RequestError`.

    `vocab`: tokens of the vocabulary, for a script of Megatron-LM that leaves that to its tokenizer.
    """
    path = Path(named)
    if (
        named in catalog.MODELS or named in catalog.ALIASES or not (path.suffix[1:] in imports.ENDINGS or os.path.isfile(path))
    ):  # of a name too long for a file too
        return Imported(catalog.model(named))
    try:
        content = files.read(path, imports.LARGEST)
    except (OSError, ValueError) as error:  # ValueError: a path with a null byte
        why = str(getattr(error, "strerror", None) or error)
        raise RequestError(sentence("cannot read the model {named}: {why}", named=named, why=why)) from error
    try:
        found = imports.read(content, named, vocab)
    except imports.VocabularyError as error:
        raise RequestError(sentence("{error}, with {flag}", error=error.sentence, flag="--vocab N")) from error
    for remark in found.remarks:
        complain(f"{named}: {remark}")
    return found


def parts_of_request(named: str, vocab: str | None = None) -> dict[str, Any]:
    """What the name or the file says: fields of a `RunSpec`, which the caller may change. Raises `RequestError`.

    `vocab`: see `imported`.
    """
    found = imported(named, vocab)
    parts = {"model": found.model, "layout": found.layout, "workload": found.workload}
    return {name: spec.model_dump() for name, spec in parts.items() if spec is not None}


def model(named: str, vocab: int | None) -> ModelSpec:
    """The model, with the longest sequences that a file says. `vocab`: as in `model_to_train`. Raises `RequestError`."""
    found, _ = _model_and_seq(named, vocab)
    return found if vocab is None else ModelSpec.model_validate(found.model_dump() | {"vocab": vocab})


def model_to_train(named: str, seq: int | None, vocab: int | None) -> ModelSpec:
    """The model with sequences of `seq` tokens; None: what the file says, or fewer if that is long. Raises `RequestError`.

    `vocab`: tokens of the vocabulary; None: what the file says.
    """
    found, usual = _model_and_seq(named, vocab)
    chosen = {"seq": usual if seq is None else seq, "vocab": vocab}
    changes = {name: value for name, value in chosen.items() if value is not None}
    return ModelSpec.model_validate(found.model_dump() | changes) if changes else found


def _model_and_seq(named: str, vocab: int | None) -> tuple[ModelSpec, int | None]:
    found = imported(named, vocab)
    if found.model is None:
        raise RequestError(sentence("{named} does not say what the model is", named=named))
    return found.model, found.seq
