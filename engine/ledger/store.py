"""Where predictions find their ledgers: shipped archives, and a folder of ledgers that were recorded on this machine."""

from __future__ import annotations

import atexit
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable
from functools import cache, cached_property
from importlib.metadata import version
from pathlib import Path

from engine.ledger.form import Ledger, Part, Structure
from engine.ledger.keep import Key, LedgerArchive, LedgerFolder, name_of

ARCHIVES = Path(__file__).parent / "recorded"  # the shipped archives
KEPT_IN = "SHARDSCOPE_LEDGERS"  # the environment variable that names the folder of recorded ledgers
_ENGINE = Path(__file__).parents[1]
# All that a recording depends on: modules and packages.
RECORDED = (
    "families.py", "generate.py", "inference.py", "ledger", "measure", "model", "objective.py", "optim", "optimizer.py",
    "parallel", "phases.py", "schedule", "spec", "tables.py", "terms.py", "text.py", "topology.py", "weights.py",
    *(f"launch/recording/{name}.py" for name in ("generation", "marks", "probe", "profiled", "record")),
)  # fmt: skip


class NotRecordedError(Exception):
    """Some ledgers were never recorded. `keys`: these ledgers. `engine.launch.recording.client` records them."""

    def __init__(self, keys: Iterable[Key]) -> None:
        self.keys = list(keys)
        super().__init__("not recorded: " + ", ".join(name_of(*key) for key in self.keys))

    def __reduce__(self) -> tuple[type[NotRecordedError], tuple[list[Key]]]:
        """Pickled by its keys, so that it comes back from another process."""
        return type(self), (self.keys,)


class LedgerStore:
    """Shipped ledgers, in a folder of archives, and ledgers that were recorded on this machine."""

    def __init__(self, archives: Path, recorded: Callable[[], LedgerFolder]) -> None:
        """`recorded` is called when a ledger is not in the archives."""
        self._folder, self._open_recorded = archives, recorded
        self._archives: dict[str, LedgerArchive] = {}

    @cached_property
    def recorded(self) -> LedgerFolder:
        return self._open_recorded()

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
    return LedgerStore(ARCHIVES, lambda: LedgerFolder(_own_folder()))


def _own_folder() -> Path:
    """In this user's home, or where the environment says. A folder for this process alone, if nothing can be written there."""
    try:
        named = os.environ.get(KEPT_IN)
        folder = (Path(named) if named else Path.home() / ".cache" / "shardscope" / "ledgers") / code_key()
        folder.mkdir(parents=True, exist_ok=True)
        if os.access(folder, os.R_OK | os.W_OK | os.X_OK):
            return folder
    except (OSError, RuntimeError):  # RuntimeError: there is no home
        pass
    folder = Path(tempfile.mkdtemp(prefix="shardscope-ledgers-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def code_key() -> str:
    """A hash of the code that ledgers are recorded from, and of torch's version."""
    digest = hashlib.sha256(version("torch").encode())
    for name in RECORDED:
        for path in sorted((_ENGINE / name).rglob("*.py")) or [_ENGINE / name]:
            digest.update(path.read_bytes())
    return digest.hexdigest()[:16]
