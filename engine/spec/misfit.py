"""A rule that parts of a spec break together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from engine.spec.sentence import Sentence


@dataclass(frozen=True)
class Misfit:
    """One broken rule: parts of a spec that do not fit together."""

    field: str  # dotted name of the field to change first, such as "layout.tp"
    sentence: Sentence  # with the arithmetic, and the nearest values that fit
    choices: tuple[Any, ...] = ()  # values of that field that fit, nearest first
