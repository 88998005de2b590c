"""Files that users name: read only if they are files and no larger than they may be, and written whole or not at all."""

from __future__ import annotations

import os
import secrets
import stat
from pathlib import Path
from typing import BinaryIO

from engine.spec import RequestError, sentence, too_large

PARTIAL = ".partial-"  # how the name of what is not whole yet begins: listings pass it over


def opened(path: Path) -> BinaryIO:
    """The file at `path`, open to be read. Raises `OSError`, and `RequestError` for what is not a regular file.

    A pipe would keep its reader waiting and a device may have no end, so neither is opened.
    """
    _refuse_others(path, os.stat(path).st_mode)  # to open some devices is to do something to them
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a pipe may have come to stand there since
    try:
        _refuse_others(path, os.fstat(descriptor).st_mode)
        return open(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def _refuse_others(path: Path, mode: int) -> None:
    if stat.S_ISDIR(mode):
        raise RequestError(sentence("{path} is a folder, not a file", path=str(path)))
    if not stat.S_ISREG(mode):
        raise RequestError(sentence("{path} is not a regular file", path=str(path)))


def read(path: Path, most: int) -> bytes:
    """All of the file at `path`. Raises as `opened` does, and `RequestError` if it has more than `most` bytes.

    A file that the system makes up as it is read, such as /proc/kmsg, says that it has none, and may keep its reader waiting: it
    is refused too.
    """
    with opened(path) as file:
        size = os.fstat(file.fileno()).st_size
        if not size and not os.fstatvfs(file.fileno()).f_blocks:  # an empty file lies where there is room for others
            raise RequestError(sentence("{path} is made up by the system as it is read; copy it to a file", path=str(path)))
        if size > most:
            raise RequestError(too_large(str(path), size, most))
        return file.read(size)


def partial(target: Path) -> Path:
    """A name beside `target` for what is to be renamed to it when whole. No other writer has the same."""
    return target.with_name(f"{PARTIAL}{secrets.token_hex(8)}-{target.name}")


def write(target: Path, content: bytes) -> None:
    """Write a file in place of what may stand there: whoever reads it finds all of it or what was there before.

    What is no file, such as /dev/stdout, is written to, and where a link points is what is replaced. Who may read and write the
    file that was there may do so after it, and no others. Raises `OSError`.
    """
    if target.exists() and not target.is_file():
        target.write_bytes(content)
        return
    target = target.resolve()
    written = target.with_name(f"{PARTIAL}{secrets.token_hex(8)}")  # of a long name, not all would fit
    mode = stat.S_IMODE(target.stat().st_mode) if target.exists() else None
    try:
        if mode is not None:
            written.touch(0o600)  # before there is something to read in it
        written.write_bytes(content)
        if mode is not None:
            written.chmod(mode)
        os.replace(written, target)
    except BaseException:
        written.unlink(missing_ok=True)
        raise


def none_temporary(error: OSError) -> RequestError:
    """That what lasts for a moment only can be put nowhere. Without a file's name, the error's own text names the folders."""
    reason = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return RequestError(sentence("no folder for temporary files can be made: {reason}", reason=reason))
