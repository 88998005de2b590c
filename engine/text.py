"""The text to train on, as bytes, and the microbatches cut from it. Imports no torch."""

from __future__ import annotations

from codecs import BOM_UTF8
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from engine import files
from engine.spec import RequestError, sentence, too_large

LARGEST = 1_000_000  # bytes of a text of the user's
# A file of this project's own: the same bytes on every system and Python, so that a spec and a seed mean one run everywhere.
_BUILT_IN = Path(__file__).with_name("text.txt")


def load(path: str | None) -> bytes:
    """The whole text as UTF-8: of the file at `path`, or without one the built-in text.

    Raises `RequestError` if there is no such file, or it is not a text that can be trained on.
    """
    if path is None:
        return _BUILT_IN.read_bytes()
    try:
        content = files.read(Path(path), LARGEST)
    except FileNotFoundError:
        raise RequestError(sentence("there is no file {path}", path=path)) from None
    except (OSError, ValueError) as error:  # ValueError: a path that no system could have, such as one with a null byte
        reason = getattr(error, "strerror", None) or error
        raise RequestError(sentence("{path!r} cannot be read: {reason}", path=path, reason=str(reason))) from error
    return checked(content, path)


def checked(content: bytes, name: str) -> bytes:
    """The text in a file's content. Raises `RequestError`, calling it `name`, if it cannot be trained on.

    A byte order mark at the start goes: it tells how a file is written and is no part of the text.
    """
    if len(content) > LARGEST:
        raise RequestError(too_large(name, len(content), LARGEST))
    try:
        content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise RequestError(
            sentence(
                "{name} is not UTF-8: byte {byte:,} makes no sense ({reason})", name=name, byte=error.start, reason=error.reason
            )
        ) from error
    text = content.removeprefix(BOM_UTF8)
    if not text:
        raise RequestError(sentence("{name} is empty", name=name))
    return text


def batch(text: bytes, seq: int, size: int, seed: int, step: int, index: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Tokens and targets of one microbatch, both (size, seq): stretches of the text, and for each byte the one after it.

    `index` counts the microbatches of a step over all replicas, so that a step's data is the same for every layout. The
    stretches depend on `seed`, `step` and `index` alone; some may overlap. Raises `RequestError` if the text is too short.
    """
    if len(text) <= seq:
        raise RequestError(
            sentence(
                "the text has {size:,} bytes and seq={seq} needs {needed:,}: the last token has a target too",
                size=len(text),
                seq=seq,
                needed=seq + 1,
            )
        )
    starts = np.random.default_rng([seed, step, index]).integers(len(text) - seq, size=size)
    stretches = np.frombuffer(text, np.uint8)[starts[:, None] + np.arange(seq + 1)].astype(np.int64)  # (size, seq + 1)
    return stretches[:, :-1], stretches[:, 1:]
