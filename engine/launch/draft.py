"""The folder of a run until the run has succeeded. So a run that fails late leaves no folder."""

from __future__ import annotations

import errno
import logging
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from engine import files, store
from engine.spec import RequestError, RunSpec, sentence
from engine.tables import RunResult


@dataclass(frozen=True)
class Draft:
    """A folder in `home` that listings do not show. Its name is unique."""

    home: Path
    name: str

    @classmethod
    def new(cls, home: Path) -> Draft:
        """Chooses a name. The folder is made when a run is saved there."""
        return cls(home, f"{files.PARTIAL}{secrets.token_hex(8)}")

    @property
    def folder(self) -> Path:
        return self.home / self.name

    @property
    def rendezvous(self) -> Path:
        """The file of the ranks' store, in a folder that only this user can enter."""
        return Path(tempfile.gettempdir()) / f"shardscope-{self.name.removeprefix('.')}" / "store"

    def make_rendezvous(self) -> Path:
        """Make that folder. Raises `RequestError` if it cannot be made."""
        try:
            self.rendezvous.parent.mkdir(mode=0o700)
        except OSError as error:
            raise files.none_temporary(error) from error
        return self.rendezvous

    def remove_rendezvous(self) -> None:
        if self.rendezvous.parent.exists():
            shutil.rmtree(self.rendezvous.parent)

    def keep(self, spec: RunSpec) -> Path:
        """Give the saved run its final name. Returns the folder."""
        while True:
            final = store.new_folder(self.home, spec)
            try:
                os.rename(self.folder, final)
                return final
            except OSError as error:
                # Another process took that name after it was found free. Any other error is raised.
                if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                    raise

    def discard(self) -> None:
        """Remove what was saved, complete or not. The processes that wrote it must have ended."""
        self.remove_rendezvous()
        store.discard_partial(self.folder)
        if self.folder.exists():
            shutil.rmtree(self.folder)


def kept(result: RunResult, home: Path) -> Path:
    """Save `result` in `home`, which is made if it is not there, under a new name. Returns the folder. Raises `RequestError`."""
    draft = Draft.new(home.absolute())
    try:
        store.save(result, draft.folder)
        return draft.keep(result.spec)
    except OSError as error:
        draft.discard()
        why = error.strerror or str(error)
        raise RequestError(sentence("cannot save in {home}: {why}", home=str(home), why=why)) from error


def make_home(home: Path) -> None:
    """Make the folder of runs, if needed. Raises `RequestError`, also if it is not writable."""
    try:
        home.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RequestError(
            sentence("cannot make the folder {home} for runs: {reason}", home=str(home), reason=error.strerror)
        ) from error
    if not os.access(home, os.W_OK | os.X_OK):
        raise RequestError(sentence("the folder {home} for runs is not writable", home=str(home)))


def note_owner(folder: Path, owner: str) -> None:
    """Note in a saved run whose it is. A full disk costs the note, not the run."""
    if not owner:
        return
    try:
        store.set_owner(folder, owner)
    except OSError as error:
        logging.getLogger(__name__).warning("whose run %s is could not be noted: %s", folder.name, error)


@contextmanager
def folder_for(out: str | os.PathLike[str] | None) -> Iterator[Path]:
    """A folder to save runs in: `out`, or where that is None a temporary one, which is removed with what is in it."""
    if out is not None:
        yield Path(out)
        return
    with tempfile.TemporaryDirectory(prefix="shardscope-") as folder:
        yield Path(folder)
