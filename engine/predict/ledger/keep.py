"""Where ledgers are kept: a volume of very many, to be shipped, and a folder of those that were recorded since."""

from __future__ import annotations

import json
import lzma
from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path

from engine.predict.ledger.form import Ledger, Part, Structure, pack, unpack

Key = tuple[Structure, Part]


class Shelf:
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
        path = self.path(structure, part)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(lzma.compress(pack(ledger)))


class Volume:
    """Very many ledgers in one file, compressed together, as they are much alike. Unpacked is what is asked for."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._read: dict[Key, Ledger] = {}

    @staticmethod
    def bind(ledgers: Mapping[Key, Ledger]) -> bytes:
        """What such a file holds."""
        packed = {_name(*key): pack(ledger) for key, ledger in sorted(ledgers.items())}
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
        return _name(*key) in self._packed

    def __call__(self, structure: Structure, part: Part) -> Ledger:
        """Raises `KeyError` where it is not in the volume."""
        key = structure, part
        if key not in self._read:
            self._read[key] = unpack(self._packed[_name(*key)])
        return self._read[key]


class Library:
    """Ledgers that are shipped, in a folder of volumes, and those that were recorded since."""

    def __init__(self, volumes: Path, shelf: Shelf) -> None:
        self._folder, self._shelf = volumes, shelf
        self._volumes: dict[str, Volume] = {}

    def __contains__(self, key: Key) -> bool:
        return self._shipped(key) or key in self._shelf

    def __call__(self, structure: Structure, part: Part) -> Ledger:
        """Raises `FileNotFoundError` where it was never recorded."""
        shipped = self._shipped((structure, part))
        return self._volumes[structure.volume](structure, part) if shipped else self._shelf(structure, part)

    def missing(self, keys: Iterable[Key]) -> list[Key]:
        """What is to be recorded first."""
        return [key for key in keys if key not in self]

    def _shipped(self, key: Key) -> bool:
        name = key[0].volume
        if name not in self._volumes and (path := self._folder / f"{name}.xz").exists():
            self._volumes[name] = Volume(path)
        return name in self._volumes and key in self._volumes[name]


def _name(structure: Structure, part: Part) -> str:
    return f"{structure.name}/{part.name}"
