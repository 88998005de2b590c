"""Files of ledgers: a folder with one file for each ledger, and an archive of very many ledgers."""

from __future__ import annotations

import json
import lzma
from collections import defaultdict
from collections.abc import Callable, Mapping
from functools import cached_property, lru_cache
from itertools import accumulate, pairwise
from pathlib import Path

from engine.files import write
from engine.ledger.form import Ledger, Part, Structure, pack, unpack

# The sizes of caches: groups of an archive, some megabytes each, and unpacked ledgers.
_GROUPS, _UNPACKED = 12, 256
_LARGEST = 64 << 20  # bytes of a ledger, and of what unpacking it takes; the largest has 60 KB
Key = tuple[Structure, Part]
Ledgers = Callable[[Structure, Part], Ledger]  # a source of ledgers


class LedgerFolder:
    """A folder with one file for each ledger."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._unpacked = lru_cache(maxsize=_UNPACKED)(self._unpack)

    def path(self, structure: Structure, part: Part) -> Path:
        return self.folder / structure.name / f"{part.name}.json.xz"

    def __contains__(self, key: Key) -> bool:
        try:
            self._unpacked(*key)
        except FileNotFoundError:
            return False
        return True

    def __call__(self, structure: Structure, part: Part) -> Ledger:
        """The ledger of a part. Raises `FileNotFoundError` if it is not in the folder."""
        return self._unpacked(structure, part)

    def _unpack(self, structure: Structure, part: Part) -> Ledger:
        """A file that is no ledger is as good as none: it is removed, to be recorded again."""
        path = self.path(structure, part)
        try:
            return unpack(_decompressed(path.read_bytes()))
        except (ValueError, KeyError, TypeError, IndexError, lzma.LZMAError):
            path.unlink(missing_ok=True)
            raise FileNotFoundError(path) from None

    def put(self, structure: Structure, part: Part, ledger: Ledger) -> None:
        """Write a ledger. An error leaves no incomplete file."""
        path = self.path(structure, part)
        path.parent.mkdir(parents=True, exist_ok=True)
        write(path, lzma.compress(pack(ledger)))


def _decompressed(data: bytes) -> bytes:
    """Raises `ValueError` for what is larger than any ledger."""
    found = lzma.LZMADecompressor(memlimit=_LARGEST).decompress(data, max_length=_LARGEST + 1)
    if len(found) > _LARGEST:
        raise ValueError("too large")
    return found


class LedgerArchive:
    """Very many ledgers in one file. The ledgers of a group (`Structure.group`) are similar, so they are compressed together.

    The file has a line of JSON with the bytes of each group, and then the groups. An uncompressed group has a line of JSON with
    the bytes of each ledger, and then the ledgers.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._group = lru_cache(maxsize=_GROUPS)(self._read_group)
        self._unpacked = lru_cache(maxsize=_UNPACKED)(self._unpack)

    @staticmethod
    def bind(ledgers: Mapping[Key, Ledger]) -> bytes:
        """The content of an archive of these ledgers."""
        groups: dict[str, dict[str, bytes]] = defaultdict(dict)
        for key, ledger in sorted(ledgers.items()):
            groups[key[0].group][name_of(*key)] = pack(ledger)
        return _joined({name: lzma.compress(_joined(several)) for name, several in groups.items()})

    @cached_property
    def _places(self) -> dict[str, slice]:
        """The place of each group in the file."""
        with self.path.open("rb") as file:
            return _slices(file.readline())

    def _read_group(self, name: str) -> dict[str, bytes]:
        """The packed ledgers of a group, by their names."""
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
        """The ledger of a part. Raises `KeyError` if it is not in the archive."""
        return self._unpacked(structure, part)


def _joined(several: Mapping[str, bytes]) -> bytes:
    lengths = json.dumps({name: len(one) for name, one in several.items()}).encode()
    return lengths + b"\n" + b"".join(several.values())


def _slices(first: bytes) -> dict[str, slice]:
    """The place of each entry. `first`: the line of lengths before the entries, with its newline."""
    ends = accumulate(json.loads(first).values(), initial=len(first))
    return {name: slice(start, end) for name, (start, end) in zip(json.loads(first), pairwise(ends), strict=True)}


def name_of(structure: Structure, part: Part) -> str:
    """The name of a ledger, in an archive and in messages."""
    return f"{structure.name}/{part.name}"
