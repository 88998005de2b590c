"""A request that comes as a file."""

from __future__ import annotations

import sys
from pathlib import Path

from engine.spec import RequestError, RunSpec


def read_spec(name: str) -> RunSpec:
    """The spec in the JSON file `name`, or on standard input if that is "-". Raises `RequestError`."""
    try:
        text = sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes()
    except OSError as error:
        raise RequestError(f"cannot read the spec {name}: {error.strerror}") from error
    return RunSpec.read_json(text)
