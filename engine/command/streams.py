"""Standard input, output and error that may be unusable: closed, full, with a limited encoding, or without a reader."""

from __future__ import annotations

import io
import os
import sys
from typing import TextIO


def make_usable() -> None:
    """Replace closed standard streams by the null device. Call it before any file is opened.

    A character that the encoding does not have is written as an escape sequence.
    """
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:  # it took the number of a closed stream, as any file would
        pass
    os.close(descriptor)
    sys.stdin = sys.stdin or os.fdopen(0)
    sys.stdout, sys.stderr = sys.stdout or os.fdopen(1, "w"), sys.stderr or os.fdopen(2, "w")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def written(text: str, stream: TextIO) -> str:
    """Write `text` and flush. Returns the reason of a failure in a few words; "" if it was written, or if the reader is gone."""
    try:
        stream.write(text)
        stream.flush()
    except OSError as error:
        # Text that is left in the buffer would raise the error again when the program ends. So it goes to the null device.
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)
        return "" if isinstance(error, BrokenPipeError) else (error.strerror or str(error))
    return ""
