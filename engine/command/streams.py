"""Standard input, output and error as a shell may leave them: closed, full, without some letters, or with nobody at the end."""

from __future__ import annotations

import io
import os
import sys
from typing import TextIO


def make_usable() -> None:
    """Before anything else is opened. From a closed stream nothing comes, and what is written to one goes nowhere.

    A letter that an encoding has not is written as its number.
    """
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:  # a closed one: what is opened next would take its number
        pass
    os.close(descriptor)
    sys.stdin = sys.stdin or os.fdopen(0)
    sys.stdout, sys.stderr = sys.stdout or os.fdopen(1, "w"), sys.stderr or os.fdopen(2, "w")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def written(text: str, stream: TextIO) -> str:
    """Write all of `text` and hand it on. Why that could not be, in a few words; "" if it was, or if its reader has gone."""
    try:
        stream.write(text)
        stream.flush()
    except OSError as error:
        # What is left in the stream would be an error once more when the program ends.
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
        return "" if isinstance(error, BrokenPipeError) else (error.strerror or str(error))
    return ""
