"""A run from elsewhere, as a zip that a reader uploads. It is opened apart from the server, whose memory it could fill."""

from __future__ import annotations

import json
import logging
from pathlib import Path

from engine import store
from engine.spec import RequestError, sentence
from engine.spec.sentence import unpacked
from pages.shared.subprocesses import run_module

_MEMORY_MB = 1024  # four times what a run may hold, once packed and once unpacked


def add(zipped: bytes, home: Path, name: str) -> Path:
    """Save the run in a zip under `home`, as the folder in it is named or else as `name`. Its folder. Raises `RequestError`."""
    named = name if store.good_name(name) else ""  # no other could be an argument of a program on every system
    try:
        answer = json.loads(run_module("engine.run_archive", str(home), named, str(_MEMORY_MB), given=zipped))
    except RuntimeError as error:  # a library can end the whole process over a damaged file
        logging.getLogger(__name__).warning("a zip that was uploaded could not be opened: %s", error)
        raise RequestError(sentence("this zip is damaged: the process that opened it ended before it was done")) from error
    if "refused" in answer:
        raise RequestError(unpacked(answer["refused"]))
    return home / str(answer["folder"])
