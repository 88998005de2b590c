"""The model of a command: a named one, or one that a file describes."""

from __future__ import annotations

from pathlib import Path

from engine import catalog, files, imports
from engine.command.output import complain
from engine.imports import Imported
from engine.spec import ModelSpec, RequestError

HELP = f"a named model, such as {', '.join(catalog.SUCH_AS)} (`models` lists them), or a file: a config.json of Hugging Face"


def imported(named: str) -> Imported:
    """What the name or the file says. Its remarks are printed to standard error. Raises `RequestError`."""
    path = Path(named)
    if named in catalog.MODELS or named in catalog.ALIASES or not (path.suffix[1:] in imports.ENDINGS or path.is_file()):
        return Imported(catalog.model(named))
    try:
        content = files.read(path, imports.LARGEST)
    except (OSError, ValueError) as error:  # ValueError: a path with a null byte
        raise RequestError(f"cannot read the model {named}: {getattr(error, 'strerror', None) or error}") from error
    found = imports.read(content, named)
    for remark in found.remarks:
        complain(f"{named}: {remark}")
    return found


def model(named: str) -> ModelSpec:
    """The model. Raises `RequestError`."""
    found = imported(named).model
    if found is None:
        raise RequestError(f"{named} does not say what the model is")
    return found
