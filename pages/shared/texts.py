"""Texts that users uploaded, kept under the name of their content, so that a link can point at one."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

from engine import files
from engine.spec import RequestError, sentence
from engine.text import checked

_NAME = re.compile(r"[0-9a-f]{16}")


@dataclass(frozen=True)
class Texts:
    """A folder of texts. A text's name is the start of its SHA-256."""

    folder: Path

    def keep(self, content: bytes) -> str:
        """Store a text and return its name. Raises `RequestError` if it cannot be trained on, or not be kept."""
        checked(content, sentence("the text"))
        name = hashlib.sha256(content).hexdigest()[:16]
        path = self.folder / f"{name}.txt"
        if not path.exists():
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                files.write(path, content)  # a run that starts now finds all of it or nothing
            except OSError as error:
                raise RequestError(sentence("the text could not be kept: {reason}", reason=str(error.strerror))) from error
        return name

    def path(self, name: str) -> Path | None:
        """Where the text of that name is; None if it is not here (or the name is not one)."""
        path = self.folder / f"{name}.txt"
        return path if _NAME.fullmatch(name) and path.is_file() else None

    def name(self, path: str | None) -> str:
        """The name of a text stored here; empty for any other file and for none."""
        here = path is not None and Path(path).parent == self.folder and _NAME.fullmatch(Path(path).stem)
        return Path(path).stem if here and path else ""
