"""The text to train on, as bytes, and the microbatches cut from it. Imports no torch."""

from __future__ import annotations

from codecs import BOM_UTF8
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from engine import files
from engine.spec import RequestError, sentence, too_large

LARGEST = 1_000_000  # bytes of a user's text
# A file of this project: it has the same bytes on every system, so that a spec and a seed give the same run everywhere.
_BUILT_IN = Path(__file__).with_name("text.txt")


def load(path: str | None) -> bytes:
    """The text as UTF-8: that of the file at `path`, or the built-in text if `path` is None.

    Raises `RequestError` if there is no such file, or if it is not a text to train on.
    """
    if path is None:
        return _BUILT_IN.read_bytes()
    try:
        content = files.read(Path(path), LARGEST)
    except FileNotFoundError:
        raise RequestError(sentence("there is no file {path}", path=path)) from None
    except (OSError, ValueError) as error:  # ValueError: an invalid path, such as one with a null byte
        reason = getattr(error, "strerror", None) or error
        raise RequestError(sentence("{path!r} cannot be read: {reason}", path=path, reason=str(reason))) from error
    return checked(content, path)


def checked(content: bytes, name: str) -> bytes:
    """The text in a file's content. Raises `RequestError` that calls it `name`, if it is not a text to train on.

    A byte order mark at the start is removed: it marks the encoding and is not a part of the text.
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
    """Tokens and targets of one microbatch, both (size, seq): pieces of the text, and for each byte the next one.

    `index` numbers the microbatches of a step over all replicas, so that every layout has the same data. The pieces depend only
    on `seed`, `step` and `index`. They may overlap. Raises `RequestError` if the text is too short.
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
    pieces = np.frombuffer(text, np.uint8)[starts[:, None] + np.arange(seq + 1)].astype(np.int64)  # (size, seq + 1)
    return pieces[:, :-1], pieces[:, 1:]
