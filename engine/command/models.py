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


def imported(named: str) -> Imported:
    """What the name or the file says. Its remarks are printed to standard error. Raises `RequestError`."""
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
    found = imports.read(content, named)
    for remark in found.remarks:
        complain(f"{named}: {remark}")
    return found


def parts_of_request(named: str) -> dict[str, Any]:
    """What the name or the file says: fields of a `RunSpec`, which the caller may change. Raises `RequestError`."""
    found = imported(named)
    parts = {"model": found.model, "layout": found.layout, "workload": found.workload}
    return {name: spec.model_dump() for name, spec in parts.items() if spec is not None}


def model(named: str) -> ModelSpec:
    """The model, with the longest sequences that a file says. Raises `RequestError`."""
    return _model_and_seq(named)[0]


def model_to_train(named: str, seq: int | None) -> ModelSpec:
    """The model with sequences of `seq` tokens; None: what the file says, or fewer if that is long. Raises `RequestError`."""
    found, usual = _model_and_seq(named)
    chosen = usual if seq is None else seq
    return found if chosen is None else ModelSpec.model_validate(found.model_dump() | {"seq": chosen})


def _model_and_seq(named: str) -> tuple[ModelSpec, int | None]:
    found = imported(named)
    if found.model is None:
        raise RequestError(sentence("{named} does not say what the model is", named=named))
    return found.model, found.seq
