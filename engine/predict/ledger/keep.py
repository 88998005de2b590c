"""Files of ledgers: a folder with one file for each ledger, and an archive of very many ledgers."""

from __future__ import annotations

import json
import lzma
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path

from engine.files import write
from engine.predict.ledger.form import Ledger, Part, Structure, pack, unpack

Key = tuple[Structure, Part]
Ledgers = Callable[[Structure, Part], Ledger]  # a source of ledgers


class LedgerFolder:
    """A folder with one file for each ledger. Each file is read once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._read: dict[Key, Ledger] = {}

    def path(self, structure: Structure, part: Part) -> Path:
        return self.folder / structure.name / f"{part.name}.json.xz"

    def __contains__(self, key: Key) -> bool:
        return self.path(*key).exists()

    def __call__(self, structure: Structure, part: Part) -> Ledger:
        """The ledger of a part. Raises `FileNotFoundError` if it is not in the folder."""
        key = structure, part
        if key not in self._read:
            self._read[key] = unpack(lzma.decompress(self.path(structure, part).read_bytes()))
        return self._read[key]

    def put(self, structure: Structure, part: Part, ledger: Ledger) -> None:
        """Write a ledger. An error leaves no incomplete file."""
        path = self.path(structure, part)
        path.parent.mkdir(parents=True, exist_ok=True)
        write(path, lzma.compress(pack(ledger)))


class LedgerArchive:
    """Very many ledgers in one file. They are similar, so they are compressed together. A ledger is unpacked when asked for."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._read: dict[Key, Ledger] = {}

    @staticmethod
    def bind(ledgers: Mapping[Key, Ledger]) -> bytes:
        """The content of an archive of these ledgers."""
        packed = {name_of(*key): pack(ledger) for key, ledger in sorted(ledgers.items())}
        lengths = json.dumps({name: len(one) for name, one in packed.items()}).encode()
        return lzma.compress(lengths + b"\n" + b"".join(packed.values()))

    @cached_property
    def _packed(self) -> dict[str, bytes]:
        first, _, rest = lzma.decompress(self.path.read_bytes()).partition(b"\n")
        found, start = {}, 0
        for name, length in json.loads(first).items():
            found[name] = rest[start : start + length]
            start += length
        return found

    def __contains__(self, key: Key) -> bool:
        return name_of(*key) in self._packed

    def __call__(self, structure: Structure, part: Part) -> Ledger:
        """The ledger of a part. Raises `KeyError` if it is not in the archive."""
        key = structure, part
        if key not in self._read:
            self._read[key] = unpack(self._packed[name_of(*key)])
        return self._read[key]


def name_of(structure: Structure, part: Part) -> str:
    """The name of a ledger in an archive."""
    return f"{structure.name}/{part.name}"
