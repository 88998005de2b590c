"""Files with paths from users. Only regular files of a limited size are read. Files are written completely or not at all."""

from __future__ import annotations

import os
import secrets
import stat
from pathlib import Path
from typing import BinaryIO

from engine.spec import RequestError, sentence, too_large

PARTIAL = ".partial-"  # the prefix of names of unfinished files and folders, which listings skip


def opened(path: Path) -> BinaryIO:
    """The file at `path`, opened for reading. Raises `OSError`, and `RequestError` if it is not a regular file.

    Reading a pipe may block, and a device may have no end. So they are not opened.
    """
    _refuse_irregular(path, os.stat(path).st_mode)  # before opening: to open a device may have effects
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # does not block, if it is a pipe by now
    try:
        _refuse_irregular(path, os.fstat(descriptor).st_mode)
        return open(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def _refuse_irregular(path: Path, mode: int) -> None:
    if stat.S_ISDIR(mode):
        raise RequestError(sentence("{path} is a folder, not a file", path=str(path)))
    if not stat.S_ISREG(mode):
        raise RequestError(sentence("{path} is not a regular file", path=str(path)))


def read(path: Path, most: int) -> bytes:
    """The content of the file at `path`. Raises as `opened` does, and `RequestError` if it has more than `most` bytes.

    A file that the system generates while it is read, such as /proc/kmsg, reports a size of 0, and reading it may block. It is
    refused too.
    """
    with opened(path) as file:
        size = os.fstat(file.fileno()).st_size
        if not size and not os.fstatvfs(file.fileno()).f_blocks:  # a generated file: a real file system has blocks
            raise RequestError(sentence("{path} is made up by the system as it is read; copy it to a file", path=str(path)))
        if size > most:
            raise RequestError(too_large(str(path), size, most))
        return file.read(size)


def partial(target: Path) -> Path:
    """A path in the same folder as `target`, for an unfinished file or folder that is renamed to `target` later. It is unique."""
    return target.with_name(f"{PARTIAL}{secrets.token_hex(8)}-{target.name}")


def write(target: Path, content: bytes) -> None:
    """Write or replace a file atomically: a reader finds either the whole new content or the old one. Raises `OSError`.

    A path that is not a file, such as /dev/stdout, is written to directly. If it is a link, its target is replaced. The new file
    has the permissions of the old one.
    """
    if target.exists() and not target.is_file():
        target.write_bytes(content)
        return
    target = target.resolve()
    written = target.with_name(f"{PARTIAL}{secrets.token_hex(8)}")  # without the target's name, which may be too long
    mode = stat.S_IMODE(target.stat().st_mode) if target.exists() else None
    try:
        if mode is not None:
            written.touch(0o600)  # nobody else may read it before it has the old file's permissions
        written.write_bytes(content)
        if mode is not None:
            written.chmod(mode)
        os.replace(written, target)
    except BaseException:
        written.unlink(missing_ok=True)
        raise


def none_temporary(error: OSError) -> RequestError:
    """The `RequestError` if there is no folder for temporary files. If the error has no file name, its text lists the folders."""
    reason = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return RequestError(sentence("no folder for temporary files can be made: {reason}", reason=reason))
