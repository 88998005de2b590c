"""Ledgers are kept as they were recorded: in a folder one by one, or very many in one file."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.launch.recordings import bind
from engine.predict.ledger.form import Part, Structure
from engine.predict.ledger.keep import Library, Shelf, Volume
from engine.predict.ledger.passes import Ledgers

PLAIN = Structure("gpt", "none", "fp32", False, "features", ("A/G",))
KEYS = [
    (structure, part)
    for structure in (PLAIN, PLAIN._replace(ones=("A/G", "B")))
    for part in (Part(True, True, 2), Part(True, True, 1))
]


def test_a_folder_gives_back_what_was_put_there(ledgers: Ledgers, tmp_path: Path) -> None:
    key, other = KEYS[:2]
    Shelf(tmp_path).put(*key, ledgers(*key))
    again = Shelf(tmp_path)
    assert again(*key) == ledgers(*key)
    assert key in again
    assert other not in again
    with pytest.raises(FileNotFoundError):
        again(*other)


def test_a_volume_gives_back_each_of_its_ledgers_and_is_smaller_than_a_folder(ledgers: Ledgers, tmp_path: Path) -> None:
    several, shelf = {key: ledgers(*key) for key in KEYS}, Shelf(tmp_path)
    for key, ledger in several.items():
        shelf.put(*key, ledger)
    path = tmp_path / "volume.xz"
    path.write_bytes(Volume.bind(several))
    volume = Volume(path)
    assert {key: volume(*key) for key in KEYS} == several
    assert path.stat().st_size < sum(shelf.path(*key).stat().st_size for key in KEYS)
    missing = KEYS[0][0], Part(False, False, 1)
    assert missing not in volume
    with pytest.raises(KeyError):
        volume(*missing)


def test_a_library_has_what_is_shipped_and_what_was_recorded_since(ledgers: Ledgers, tmp_path: Path) -> None:
    shipped, recorded, neither = ((PLAIN, Part(True, True, layers)) for layers in (2, 1, 0))
    once, since = Shelf(tmp_path / "once"), Shelf(tmp_path / "since")
    for key, shelf in ((shipped, once), (recorded, since)):
        shelf.put(*key, ledgers(*key))
    bind([shipped], once, tmp_path / "volumes")
    library = Library(tmp_path / "volumes", since)
    assert library.missing([shipped, recorded, neither]) == [neither]
    assert library(*shipped) == ledgers(*shipped)
    assert library(*recorded) == ledgers(*recorded)
    with pytest.raises(FileNotFoundError):
        library(*neither)
