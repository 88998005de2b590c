"""A request that comes as a file."""

from __future__ import annotations

import sys
from pathlib import Path

from engine import files
from engine.spec import LARGEST_JSON, RequestError, RunSpec, sentence


def read_spec(name: str) -> RunSpec:
    """The spec in the JSON file `name`, or on standard input if that is "-". Raises `RequestError`."""
    try:
        text = sys.stdin.buffer.read(LARGEST_JSON + 1) if name == "-" else files.read(Path(name), LARGEST_JSON)
    except (OSError, ValueError) as error:  # ValueError: a path with a null byte
        why = str(getattr(error, "strerror", None) or error)
        raise RequestError(sentence("cannot read the spec {name}: {why}", name=name, why=why)) from error
    return RunSpec.read_json(text)
