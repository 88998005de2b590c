"""Upload of a run as a zip. Another process opens it, because it could use up the server's memory."""

from __future__ import annotations

import json
import logging
from pathlib import Path

from engine import store
from engine.spec import RequestError, sentence
from engine.spec.sentence import unpacked
from pages.shared.subprocesses import run_module

_MEMORY_MB = 1024  # four times the limit of a run, which is there packed and unpacked


def add(zipped: bytes, home: Path, name: str) -> Path:
    """Save the run in a zip under `home`, named as the folder in the zip, or `name`. Its folder. Raises `RequestError`."""
    named = name if store.good_name(name) else ""  # other names cannot be arguments of a program on every system
    try:
        answer = json.loads(run_module("engine.run_archive", str(home), named, str(_MEMORY_MB), given=zipped))
    except RuntimeError as error:  # a library can crash the process on a damaged file
        logging.getLogger(__name__).warning("a zip that was uploaded could not be opened: %s", error)
        raise RequestError(sentence("this zip is damaged: the process that opened it ended before it was done")) from error
    if "refused" in answer:
        raise RequestError(unpacked(answer["refused"]))
    return home / str(answer["folder"])
