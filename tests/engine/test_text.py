"""The training text, and the microbatches taken from it."""

from __future__ import annotations

import hashlib
import os
from itertools import product
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine import files
from engine.spec import RequestError
from engine.text import LARGEST, batch, checked, load

TEXT = bytes(range(200)) * 3  # a byte identifies its position, up to three repetitions
SHAPES = st.tuples(st.integers(1, 40), st.integers(1, 8))  # seq, size
DRAWS = st.tuples(st.integers(0, 2**31 - 1), st.integers(1, 10_000), st.integers(0, 10**7))  # seed, step, index


# ------------------------------------------------------------------------------------------------------ reading


def test_the_built_in_text_is_the_same_on_every_system() -> None:
    """If one byte differed, the same spec would give other losses elsewhere, and a cluster would have different texts."""
    text = load(None)
    assert hashlib.sha256(text).hexdigest() == "a834ebc14eb711bc9bd330f31a61e2d38c36e97f15ec64086884f83ef00612e1"
    assert text.isascii()
    assert text.startswith(b"Shardscope shows what distributed training of a Transformer really does")


def test_a_file_is_read_as_its_bytes(tmp_path: Path) -> None:
    file = tmp_path / "poem.txt"
    content = "Größe 大小 μέγεθος\r\n\x00 ok\n".encode()
    file.write_bytes(content)
    assert load(str(file)) == content


def test_a_byte_order_mark_is_no_part_of_the_text(tmp_path: Path) -> None:
    file = tmp_path / "from-notepad.txt"
    file.write_text("hello", encoding="utf-8-sig")
    assert load(str(file)) == b"hello"
    assert checked("a\ufeffb".encode(), "x") == "a\ufeffb".encode()  # inside the text it is an ordinary character


def test_the_largest_file_is_a_million_bytes(tmp_path: Path) -> None:
    file = tmp_path / "large.txt"
    file.write_bytes(b"a" * LARGEST)
    assert len(load(str(file))) == LARGEST == 1_000_000
    file.write_bytes(b"a" * (LARGEST + 1))
    with pytest.raises(RequestError, match=r"large\.txt has 1,000,001 bytes; at most 1,000,000 are accepted"):
        load(str(file))
    with pytest.raises(RequestError, match=r"upload has 1,000,001 bytes; at most 1,000,000 are accepted"):
        checked(b"a" * (LARGEST + 1), "upload")


@pytest.mark.parametrize(
    ("content", "place"),
    [(b"abc\xff", "3"), ("café".encode("latin-1"), "3"), ("ab".encode("utf-16"), "0"), (b"x" * 2000 + b"\xe4\xb8", "2,000")],
)
def test_a_file_that_is_not_utf8_is_refused_with_the_place(tmp_path: Path, content: bytes, place: str) -> None:
    file = tmp_path / "strange.txt"
    file.write_bytes(content)
    with pytest.raises(RequestError, match=rf"strange\.txt is not UTF-8: byte {place} makes no sense"):
        load(str(file))


@pytest.mark.parametrize("content", [b"", b"\xef\xbb\xbf"])
def test_an_empty_file_is_refused(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "empty.txt"
    file.write_bytes(content)
    with pytest.raises(RequestError, match=r"empty\.txt is empty"):
        load(str(file))


def test_an_unreadable_file_is_refused_with_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RequestError, match=r"there is no file .*nowhere\.txt"):
        load(str(tmp_path / "nowhere.txt"))
    with pytest.raises(RequestError, match="is a folder, not a file"):
        load(str(tmp_path))
    (tmp_path / "file").touch()
    with pytest.raises(RequestError, match="cannot be read: Not a directory"):
        load(str(tmp_path / "file" / "inside"))
    with pytest.raises(RequestError, match=r"cannot be read: .*null"):
        load("a\0b")
    with pytest.raises(RequestError, match="cannot be read: File name too long"):
        load("a" * 5000)

    def refuse(path: Path) -> BinaryIO:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(files, "opened", refuse)  # root can read everything
    (tmp_path / "secret.txt").touch()
    with pytest.raises(RequestError, match=r"secret\.txt' cannot be read: Permission denied"):
        load(str(tmp_path / "secret.txt"))


def test_a_pipe_without_a_writer_is_refused_at_once(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(RequestError, match="is not a regular file"):
        load(str(pipe))


# -------------------------------------------------------------------------------------------------------------- batches


@given(SHAPES, DRAWS)
def test_each_target_is_the_byte_after_its_token(shape: tuple[int, int], draw: tuple[int, int, int]) -> None:
    tokens, targets = batch(TEXT, *shape, *draw)
    for array in (tokens, targets):
        assert array.shape == (shape[1], shape[0])
        assert array.dtype == np.int64
    assert (targets[:, :-1] == tokens[:, 1:]).all()
    assert (targets == (tokens + 1) % 200).all()  # the bytes of the text count up


@given(SHAPES, DRAWS)
def test_the_same_draw_gives_the_same_batch(shape: tuple[int, int], draw: tuple[int, int, int]) -> None:
    for one, other in zip(batch(TEXT, *shape, *draw), batch(TEXT, *shape, *draw), strict=True):
        assert (one == other).all()


def test_another_seed_step_or_microbatch_gives_another_batch() -> None:
    """So replicas, microbatches and steps train on different data."""
    text = load(None)
    drawn = {batch(text, 64, 2, *draw)[0].tobytes() for draw in product(range(4), range(1, 5), range(16))}
    assert len(drawn) == 4 * 4 * 16


def test_batches_reach_both_ends_of_the_text() -> None:
    starts = {int(batch(b"abcde", 3, 1, 0, 1, index)[0][0, 0]) for index in range(50)}
    assert starts == {ord("a"), ord("b")}  # the only two positions at which three tokens and a last target fit


def test_the_shortest_text_has_one_byte_more_than_a_sequence() -> None:
    tokens, targets = batch(b"abcd", 3, 2, 0, 1, 0)
    assert tokens.tolist() == [[97, 98, 99]] * 2
    assert targets.tolist() == [[98, 99, 100]] * 2
    with pytest.raises(RequestError, match=r"the text has 3 bytes and seq=3 needs 4"):
        batch(b"abc", 3, 2, 0, 1, 0)
