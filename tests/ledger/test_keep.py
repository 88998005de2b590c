"""Ledgers are stored unchanged: one in a file, or many in an archive."""

from __future__ import annotations

import lzma
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from engine.launch.recording.recordings import bind
from engine.ledger.form import Part, Structure
from engine.ledger.keep import LedgerArchive, LedgerFolder, Ledgers
from engine.ledger.store import LedgerStore, NotRecordedError
from engine.spec import ModelSpec

PLAIN = Structure("gpt", "none", "fp32", "features", ("A/G",))
KEYS = [
    (structure, part)
    for structure in (PLAIN, PLAIN._replace(ones=("A/G", "B")))
    for part in (Part(True, True, 2), Part(True, True, 1))
]


def test_a_folder_returns_the_ledgers_stored_in_it(ledgers: Ledgers, tmp_path: Path) -> None:
    key, other = KEYS[:2]
    LedgerFolder(tmp_path).put(*key, ledgers(*key))
    again = LedgerFolder(tmp_path)
    assert again(*key) == ledgers(*key)
    assert key in again
    assert other not in again
    with pytest.raises(FileNotFoundError):
        again(*other)


def test_an_archive_returns_each_of_its_ledgers_and_is_smaller_than_a_folder(ledgers: Ledgers, tmp_path: Path) -> None:
    several, shelf = {key: ledgers(*key) for key in KEYS}, LedgerFolder(tmp_path)
    for key, ledger in several.items():
        shelf.put(*key, ledger)
    path = tmp_path / "volume.xz"
    path.write_bytes(LedgerArchive.bind(several))
    volume = LedgerArchive(path)
    assert {key: volume(*key) for key in KEYS} == several
    assert path.stat().st_size < sum(shelf.path(*key).stat().st_size for key in KEYS)
    missing = KEYS[0][0], Part(False, False, 1)
    assert missing not in volume
    with pytest.raises(KeyError):
        volume(*missing)


def test_a_store_has_shipped_and_newly_recorded_ledgers(ledgers: Ledgers, tmp_path: Path) -> None:
    shipped, recorded, neither = ((PLAIN, Part(True, True, layers)) for layers in (2, 1, 0))
    once, since = LedgerFolder(tmp_path / "once"), LedgerFolder(tmp_path / "since")
    for key, folder in ((shipped, once), (recorded, since)):
        folder.put(*key, ledgers(*key))
    bind([shipped], once, tmp_path / "archives", whole=True)
    store = LedgerStore(tmp_path / "archives", lambda: since)
    store.check([shipped, recorded])
    with pytest.raises(NotRecordedError) as raised:
        store.check([shipped, recorded, neither])
    assert raised.value.keys == [neither]
    assert store(*shipped) == ledgers(*shipped)
    assert store(*recorded) == ledgers(*recorded)
    with pytest.raises(NotRecordedError):
        store(*neither)


def test_archives_of_what_is_no_longer_shipped_are_removed(ledgers: Ledgers, tmp_path: Path) -> None:
    key = PLAIN, Part(True, True, 2)
    once = LedgerFolder(tmp_path / "once")
    once.put(*key, ledgers(*key))
    former = tmp_path / "former.ledgers"
    former.touch()
    for whole in (False, True):
        bind([key], once, tmp_path, whole)
        assert former.exists() != whole
        assert (tmp_path / f"{PLAIN.archive}.ledgers").exists()


def test_what_was_not_recorded_is_known_in_another_process_too() -> None:
    """A search in a process of its own raises it, and its keys are recorded here."""
    assert pickle.loads(pickle.dumps(NotRecordedError(KEYS))).keys == KEYS


@pytest.mark.parametrize("content", [b"", b"no ledger", lzma.compress(b" " * (65 << 20)), lzma.compress(b'{"names": []}')])
def test_a_damaged_file_counts_as_none_and_is_removed(tmp_path: Path, content: bytes) -> None:
    folder, key = LedgerFolder(tmp_path), KEYS[0]
    path = folder.path(*key)
    path.parent.mkdir()
    path.write_bytes(content)
    assert key not in folder
    assert not path.exists()


def test_without_a_home_ledgers_go_to_a_folder_of_the_process(tmp_path: Path) -> None:
    """Shipped ledgers need no folder at all."""
    code = "from engine.ledger.store import ledger_store as s; print(s().recorded.folder.is_dir())"
    nowhere = tmp_path / "file"
    nowhere.touch()
    done = subprocess.run([sys.executable, "-c", code], env={"HOME": str(nowhere)}, capture_output=True, text=True, check=True)
    assert done.stdout == "True\n"


def test_the_name_of_a_model_with_every_part_chosen_can_be_a_file_name(tmp_path: Path) -> None:
    """Of 255 characters at most. Models that differ have other names."""
    chosen = {
        "norm": "rms", "placement": "output", "qk_norm": "full", "position": "rotary", "inner": "gelu_tanh", "head": "transform",
        "tied": False, "output_bias": True, "mlp_bias": False, "embedding_norm": True, "scaled_embedding": False,
    }  # fmt: skip
    ones = ("A/G", "B", "C", "D", "F/tp", "G/tp", "S/tp")
    names = set()
    for inner in ("gelu_tanh", "relu2"):
        model = ModelSpec.model_validate({"family": "transformer"} | chosen | {"inner": inner})
        one = Structure(
            "transformer", "core_attn+layernorm+mlp_act", "bf16", "sequence", ones, False, "fused", True, model.chosen_parts
        )
        (tmp_path / one.name).mkdir()
        names.add(one.archive)
    assert len(names) == 2
