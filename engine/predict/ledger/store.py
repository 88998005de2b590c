"""Where predictions find their ledgers: shipped archives, and a folder of ledgers that were recorded on this machine."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from functools import cache
from importlib.metadata import version
from pathlib import Path

from engine.predict.ledger.form import Ledger, Part, Structure
from engine.predict.ledger.keep import Key, LedgerArchive, LedgerFolder, name_of

ARCHIVES = Path(__file__).parent / "recorded"  # the shipped archives
_ENGINE = Path(__file__).parents[2]
_RECORDED = (
    "model", "parallel", "inference.py", "generate.py", "launch/record.py", "launch/record_generation.py", "launch/marks.py",
    "launch/probe.py", "launch/profiled.py", "predict/ledger/form.py", "predict/ledger/dimensions.py",
)  # fmt: skip


class NotRecordedError(Exception):
    """Some ledgers were never recorded. `keys`: these ledgers. `engine.launch.recording` records them."""

    def __init__(self, keys: Iterable[Key]) -> None:
        self.keys = list(keys)
        super().__init__("not recorded: " + ", ".join(name_of(*key) for key in self.keys))

    def __reduce__(self) -> tuple[type[NotRecordedError], tuple[list[Key]]]:
        """Pickled by its keys, so that it comes back from another process."""
        return type(self), (self.keys,)


class LedgerStore:
    """Shipped ledgers, in a folder of archives, and ledgers that were recorded on this machine."""

    def __init__(self, archives: Path, recorded: LedgerFolder) -> None:
        self.recorded = recorded
        self._folder = archives
        self._archives: dict[str, LedgerArchive] = {}

    def __contains__(self, key: Key) -> bool:
        return self._shipped(key) or key in self.recorded

    def __call__(self, structure: Structure, part: Part) -> Ledger:
        """The ledger of a part. Raises `NotRecordedError` if it was never recorded."""
        key = structure, part
        if self._shipped(key):
            return self._archives[structure.archive](structure, part)
        if key not in self.recorded:
            raise NotRecordedError([key])
        return self.recorded(structure, part)

    def check(self, keys: Iterable[Key]) -> None:
        """Raises `NotRecordedError` with those of `keys` that are missing."""
        if missing := [key for key in keys if key not in self]:
            raise NotRecordedError(missing)

    def _shipped(self, key: Key) -> bool:
        name = key[0].archive
        if name not in self._archives and (path := self._folder / f"{name}.ledgers").exists():
            self._archives[name] = LedgerArchive(path)
        return name in self._archives and key in self._archives[name]


@cache
def ledger_store() -> LedgerStore:
    """Shipped ledgers, and those that this user has recorded with this version of the engine and of torch."""
    return LedgerStore(ARCHIVES, LedgerFolder(Path.home() / ".cache" / "shardscope" / "ledgers" / code_key()))


def code_key() -> str:
    """A hash of the code that ledgers are recorded from, and of torch's version."""
    digest = hashlib.sha256(version("torch").encode())
    for name in _RECORDED:
        for path in sorted((_ENGINE / name).glob("*.py")) or [_ENGINE / name]:
            digest.update(path.read_bytes())
    return digest.hexdigest()[:16]
