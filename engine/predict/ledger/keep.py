"""Where ledgers are kept: a folder of files, and in memory those that were read."""

from __future__ import annotations

from pathlib import Path

from engine.predict.ledger.form import Ledger, Part, Structure, unpack


class Shelf:
    """The ledgers of a folder. Each is read once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._read: dict[tuple[Structure, Part], Ledger] = {}

    def __call__(self, structure: Structure, part: Part) -> Ledger:
        """Raises `FileNotFoundError` where it was never recorded."""
        key = structure, part
        if key not in self._read:
            self._read[key] = unpack(self.path(structure, part).read_bytes())
        return self._read[key]

    def path(self, structure: Structure, part: Part) -> Path:
        return self.folder / structure.name / f"{part.name}.json.gz"
