"""Files of ledgers: a folder with a file for each, and an archive of very many."""

from __future__ import annotations

import json
import lzma
from collections import defaultdict
from collections.abc import Callable, Mapping
from functools import cached_property, lru_cache
from itertools import accumulate, pairwise
from pathlib import Path

from engine.files import write
from engine.predict.ledger.form import Ledger, Part, Structure, pack, unpack

# Kept in memory, the latest: groups of an archive, some megabytes each, and ledgers that are unpacked.
_GROUPS, _UNPACKED = 12, 256
Key = tuple[Structure, Part]
Ledgers = Callable[[Structure, Part], Ledger]  # where ledgers come from


class LedgerFolder:
    """The ledgers of a folder, a file each."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._unpacked = lru_cache(maxsize=_UNPACKED)(self._unpack)

    def path(self, structure: Structure, part: Part) -> Path:
        return self.folder / structure.name / f"{part.name}.json.xz"

    def __contains__(self, key: Key) -> bool:
        return self.path(*key).exists()

    def __call__(self, structure: Structure, part: Part) -> Ledger:
        """Raises `FileNotFoundError` where it was never recorded."""
        return self._unpacked(structure, part)

    def _unpack(self, structure: Structure, part: Part) -> Ledger:
        return unpack(lzma.decompress(self.path(structure, part).read_bytes()))

    def put(self, structure: Structure, part: Part, ledger: Ledger) -> None:
        """Write it, whole or not at all."""
        path = self.path(structure, part)
        path.parent.mkdir(parents=True, exist_ok=True)
        write(path, lzma.compress(pack(ledger)))


class LedgerArchive:
    """Very many ledgers in one file. Those of a group are compressed together, as they are much alike: see `Structure.group`.

    The file is a line of JSON, how many bytes each group has, and then the groups. A group is compressed: a line of JSON, how many
    bytes each ledger has, and then the ledgers.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._group = lru_cache(maxsize=_GROUPS)(self._read_group)
        self._unpacked = lru_cache(maxsize=_UNPACKED)(self._unpack)

    @staticmethod
    def bind(ledgers: Mapping[Key, Ledger]) -> bytes:
        """What such a file holds."""
        groups: dict[str, dict[str, bytes]] = defaultdict(dict)
        for key, ledger in sorted(ledgers.items()):
            groups[key[0].group][name_of(*key)] = pack(ledger)
        return _joined({name: lzma.compress(_joined(several)) for name, several in groups.items()})

    @cached_property
    def _places(self) -> dict[str, slice]:
        """Where in the file each group is."""
        with self.path.open("rb") as file:
            return _slices(file.readline())

    def _read_group(self, name: str) -> dict[str, bytes]:
        """Its ledgers, packed, by their names."""
        place = self._places[name]
        with self.path.open("rb") as file:
            file.seek(place.start)
            data = lzma.decompress(file.read(place.stop - place.start))
        return {one: data[here] for one, here in _slices(data[: data.index(b"\n") + 1]).items()}

    def _unpack(self, structure: Structure, part: Part) -> Ledger:
        return unpack(self._group(structure.group)[name_of(structure, part)])

    def __contains__(self, key: Key) -> bool:
        return key[0].group in self._places and name_of(*key) in self._group(key[0].group)

    def __call__(self, structure: Structure, part: Part) -> Ledger:
        """Raises `KeyError` where it is not in the archive."""
        return self._unpacked(structure, part)


def _joined(several: Mapping[str, bytes]) -> bytes:
    lengths = json.dumps({name: len(one) for name, one in several.items()}).encode()
    return lengths + b"\n" + b"".join(several.values())


def _slices(first: bytes) -> dict[str, slice]:
    """Where each is, by the line of lengths before them."""
    ends = accumulate(json.loads(first).values(), initial=len(first))
    return {name: slice(start, end) for name, (start, end) in zip(json.loads(first), pairwise(ends), strict=True)}


def name_of(structure: Structure, part: Part) -> str:
    """Of a ledger, for people."""
    return f"{structure.name}/{part.name}"
