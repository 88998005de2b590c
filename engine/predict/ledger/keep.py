"""Files of ledgers: a folder with a file for each, and an archive of very many."""

from __future__ import annotations

import json
import lzma
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path

from engine.files import write
from engine.predict.ledger.form import Ledger, Part, Structure, pack, unpack

Key = tuple[Structure, Part]
Ledgers = Callable[[Structure, Part], Ledger]  # where ledgers come from


class LedgerFolder:
    """The ledgers of a folder, a file each. Each is read once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._read: dict[Key, Ledger] = {}

    def path(self, structure: Structure, part: Part) -> Path:
        return self.folder / structure.name / f"{part.name}.json.xz"

    def __contains__(self, key: Key) -> bool:
        return self.path(*key).exists()

    def __call__(self, structure: Structure, part: Part) -> Ledger:
        """Raises `FileNotFoundError` where it was never recorded."""
        key = structure, part
        if key not in self._read:
            self._read[key] = unpack(lzma.decompress(self.path(structure, part).read_bytes()))
        return self._read[key]

    def put(self, structure: Structure, part: Part, ledger: Ledger) -> None:
        """Write it, whole or not at all."""
        path = self.path(structure, part)
        path.parent.mkdir(parents=True, exist_ok=True)
        write(path, lzma.compress(pack(ledger)))


class LedgerArchive:
    """Very many ledgers in one file, compressed together, as they are much alike. Unpacked is what is asked for."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._read: dict[Key, Ledger] = {}

    @staticmethod
    def bind(ledgers: Mapping[Key, Ledger]) -> bytes:
        """What such a file holds."""
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
        """Raises `KeyError` where it is not in the archive."""
        key = structure, part
        if key not in self._read:
            self._read[key] = unpack(self._packed[name_of(*key)])
        return self._read[key]


def name_of(structure: Structure, part: Part) -> str:
    """Of a ledger, in an archive."""
    return f"{structure.name}/{part.name}"
