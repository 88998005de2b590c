"""Files that users name: reading never blocks, and writing is atomic."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest

from engine import files
from engine.devices import read_device
from engine.launch.request import read_spec
from engine.spec import RequestError


def test_a_file_is_read_up_to_its_largest_size(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"12345")
    assert files.read(file, 5) == b"12345"
    with pytest.raises(RequestError, match="file has 5 bytes; at most 4 are accepted"):
        files.read(file, 4)


def test_endless_files_and_pipes_are_not_read(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for path in (pipe, Path("/dev/zero")):
        for read in (lambda path: files.read(path, 10), lambda path: read_spec(str(path)), read_device):
            with pytest.raises(RequestError, match="is not a regular file"):
                read(path)


def test_a_pipe_that_replaces_a_file_does_not_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, pipe = tmp_path / "file", tmp_path / "pipe"
    file.touch()
    os.mkfifo(pipe)
    looked_at = os.stat(file)
    monkeypatch.setattr("engine.files.os.stat", lambda path: looked_at)
    with pytest.raises(RequestError, match="pipe is not a regular file"):
        files.read(pipe, 10)


def test_a_virtual_file_is_refused_and_an_empty_file_is_read(tmp_path: Path) -> None:
    """For example /proc/kmsg, whose reader would wait for the next kernel message."""
    with pytest.raises(RequestError, match="/proc/self/status is made up by the system as it is read"):
        files.read(Path("/proc/self/status"), 10**6)
    empty = tmp_path / "empty"
    empty.touch()
    assert files.read(empty, 5) == b""


def test_concurrent_writers_leave_one_complete_file(tmp_path: Path) -> None:
    file, together = tmp_path / "file", Barrier(12)
    contents = [bytes([65 + n]) * 100_000 for n in range(12)]

    def write(content: bytes) -> None:
        together.wait()
        for _ in range(20):
            files.write(file, content)

    with ThreadPoolExecutor(12) as writers:
        list(writers.map(write, contents))
    assert file.read_bytes() in contents
    assert list(tmp_path.iterdir()) == [file]


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError, match="folder"):
        files.write(tmp_path / "folder", b"content")
    assert list(tmp_path.iterdir()) == [tmp_path / "folder"]


def test_a_device_or_pipe_is_written_to_and_not_replaced(tmp_path: Path) -> None:
    pipe, file, link = tmp_path / "pipe", tmp_path / "file", tmp_path / "link"
    os.mkfifo(pipe)
    with ThreadPoolExecutor(1) as reader:
        come = reader.submit(pipe.read_bytes)
        files.write(pipe, b"content")
        assert come.result() == b"content"
    assert pipe.is_fifo()
    link.symlink_to(file)
    files.write(link, b"content")
    assert link.is_symlink()
    assert file.read_bytes() == b"content"


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o444])
def test_writing_keeps_a_files_permissions(tmp_path: Path, mode: int) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"before")
    file.chmod(mode)
    files.write(file, b"content")
    assert (file.read_bytes(), file.stat().st_mode & 0o777) == (b"content", mode)
