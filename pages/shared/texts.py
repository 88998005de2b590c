"""Texts that users uploaded. Their names are hashes of their content, so that a link can refer to one."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from engine import files
from engine.spec import RequestError, sentence
from engine.text import checked

FOLDER = ".texts"  # in the folder of runs
_NAME = re.compile(r"[0-9a-f]{16}")


@dataclass(frozen=True)
class Texts:
    """A folder of texts. A text's name is the start of its SHA-256.

    `allow` is called with the name and the bytes of each text before it is stored, and raises `RequestError` to refuse it.
    """

    folder: Path
    allow: Callable[[str, int], None] = field(default=lambda name, size: None, compare=False)

    def keep(self, content: bytes) -> str:
        """Store a text and return its name. Raises `RequestError` if it cannot be trained on, or cannot be stored."""
        checked(content, sentence("the text"))
        name = hashlib.sha256(content).hexdigest()[:16]
        self.allow(name, len(content))
        path = self.folder / f"{name}.txt"
        if not path.exists():
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                files.write(path, content)  # atomic: a run that starts now finds the whole text or none
            except OSError as error:
                raise RequestError(sentence("the text could not be kept: {reason}", reason=str(error.strerror))) from error
        return name

    def path(self, name: str) -> Path | None:
        """The path of the text of that name. None if there is none, or if it is not a valid name."""
        path = self.folder / f"{name}.txt"
        return path if _NAME.fullmatch(name) and path.is_file() else None

    def name(self, path: str | None) -> str:
        """The name of a text stored here. Empty for any other file and for None."""
        here = path is not None and Path(path).parent == self.folder and _NAME.fullmatch(Path(path).stem)
        return Path(path).stem if here and path else ""
