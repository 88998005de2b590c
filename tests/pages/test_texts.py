from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest

from engine.spec import RequestError
from engine.text import LARGEST
from pages.shared.texts import Texts


def test_a_text_is_stored_under_the_hash_of_its_content(tmp_path: Path):
    texts = Texts(tmp_path / "texts")
    name = texts.keep("Übung macht den Meister".encode())
    assert texts.keep("Übung macht den Meister".encode()) == name != texts.keep(b"another")
    path = texts.path(name)
    assert path is not None
    assert path.read_text("utf-8") == "Übung macht den Meister"
    assert texts.name(str(path)) == name
    assert sorted(p.suffix for p in texts.folder.iterdir()) == [".txt", ".txt"]


@pytest.mark.parametrize(
    ("content", "sentence"),
    [(b"x" * (LARGEST + 1), "the text has 1,000,001 bytes"), (b"", "empty"), (b"caf\xe9", "not UTF-8: byte 3")],
)
def test_a_text_that_cannot_be_trained_on_is_refused(tmp_path: Path, content: bytes, sentence: str):
    with pytest.raises(RequestError, match=sentence):
        Texts(tmp_path).keep(content)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["", "..", "../secret", "0123456789abcde", "0123456789ABCDEF", "/etc/passwd"])
def test_only_names_of_stored_texts_are_found(tmp_path: Path, name: str):
    (tmp_path / "secret.txt").write_text("secret")
    assert Texts(tmp_path / "texts").path(name) is None


def test_a_file_that_is_not_stored_has_no_name(tmp_path: Path):
    assert Texts(tmp_path).name("/somewhere/0123456789abcdef.txt") == ""
    assert Texts(tmp_path).name(None) == ""


def test_concurrent_sessions_can_store_the_same_text(tmp_path: Path):
    texts = Texts(tmp_path / "texts")
    content = b"the same for the whole class " * 10_000
    together = Barrier(15)

    def keep(_: int) -> list[str]:
        together.wait()
        return [texts.keep(content + bytes([65 + n])) for n in range(20)]

    with ThreadPoolExecutor(15) as sessions:
        found = list(sessions.map(keep, range(15)))
    assert all(names == found[0] for names in found)
    assert {path.name for path in texts.folder.iterdir()} == {f"{name}.txt" for name in found[0]}


def test_a_full_disk_is_reported(tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(RequestError, match="the text could not be kept: Not a directory"):
        Texts(tmp_path / "file" / "texts").keep(b"text")
