"""The entries of a file from another program. What was not read of them is named to the user."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from engine.spec import LayoutSpec, ModelSpec, RequestError, Sentence, WorkloadSpec, sentence
from engine.spec.numbers import listed

LARGEST = 1 << 20  # bytes of a file
LARGEST_SCRIPT = 1 << 16  # of one that is not JSON, which takes longer to read; usual ones have some thousands
_SHOWN = 40  # characters of a value in a sentence
_LARGEST_NUMBER = 1e18  # of any entry: far beyond every model


@dataclass(frozen=True)
class Imported:
    """What a file says of a request. A part that the file does not describe is None.

    `remarks`: what the file says and is not in the request, a sentence each.
    `seq`: tokens of a sequence that plans take, where the file has only the most that the model takes, and that is long.
    """

    model: ModelSpec | None
    remarks: tuple[Sentence, ...] = ()
    layout: LayoutSpec | None = None
    workload: WorkloadSpec | None = None
    seq: int | None = None


class VocabularyError(RequestError):
    """A script leaves the size of the vocabulary to its tokenizer. `read` takes it from its caller instead."""


class Fields:
    """The entries of an object, by name. It keeps which were read. All methods raise `RequestError`."""

    def __init__(self, entries: Mapping[str, Any], usual: Mapping[str, Any], *, flags: bool = False) -> None:
        """`usual`: what stands for entries that a file may lack. `flags`: sentences name entries as a command's arguments."""
        self._entries, self._usual, self._flags = entries, usual, flags
        self._read: set[str] = set()

    def __contains__(self, name: str) -> bool:
        """Whether there is such an entry, and it is not null."""
        return self._entries.get(name) is not None

    def get(self, name: str) -> Any:
        """The value of an entry, the usual one if the file lacks it, or None."""
        self._read.add(name)
        value = self._entries.get(name)
        return self._usual.get(name) if value is None else value

    def number(self, name: str) -> float:
        value = self._given(name)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) < math.inf:
            raise RequestError(sentence("{name}={value} must be a number", name=self._shown(name), value=brief(value)))
        return _refused_if_large(self._shown(name), value)

    def whole(self, name: str) -> int:
        value = self._given(name)
        if isinstance(value, bool) or not isinstance(value, int):
            raise RequestError(sentence("{name}={value} must be a whole number", name=self._shown(name), value=brief(value)))
        _refused_if_large(self._shown(name), value)
        return value

    def flag(self, name: str) -> bool:
        value = self._given(name)
        if not isinstance(value, bool):
            raise RequestError(sentence("{name}={value} must be true or false", name=self._shown(name), value=brief(value)))
        return value

    def text(self, name: str) -> str:
        value = self._given(name)
        if not isinstance(value, str):
            raise RequestError(sentence("{name}={value} must be text", name=self._shown(name), value=brief(value)))
        return value

    def one_of(self, name: str, meanings: Mapping[str, Any]) -> Any:
        """What the text of an entry means."""
        text = self.text(name)
        if text not in meanings:
            raise unsupported(self._shown(name), text, meanings)
        return meanings[text]

    def demand(self, name: str, wanted: Any) -> None:
        """Refuse every value but one. An entry that the file lacks is as wanted."""
        value = self.get(name)
        if value is not None and value != wanted:
            raise unsupported(self._shown(name), value, [str(wanted).lower() if isinstance(wanted, bool) else str(wanted)])

    def unread(self) -> dict[str, Any]:
        """The entries that were not read and are not null."""
        return {name: value for name, value in self._entries.items() if name not in self._read and value is not None}

    def _given(self, name: str) -> Any:
        value = self.get(name)
        if value is None:
            raise RequestError(sentence("{name} is missing, and there is no usual value of it", name=self._shown(name)))
        return value

    def _shown(self, name: str) -> str:
        return f"--{name.replace('_', '-')}" if self._flags else name


def in_groups(name: str, value: int, layout: Mapping[str, Any], groups: int, remarks: list[Sentence]) -> dict[str, int]:
    """The fields of a layout whose ranks of dp × cp shard in so many groups. In groups of one rank nothing is sharded.

    `layout`: its dp, cp and zero. `name`, `value`: of the entry that makes the groups.
    """
    if layout["zero"] and groups > 1 and groups == layout["dp"] * layout.get("cp", 1):
        remarks.append(sentence("{name}={value} makes groups of one rank, so nothing is sharded", name=name, value=value))
        return {"zero": 0}
    return {"zero_replicas": groups} if layout["zero"] else {}


def _refused_if_large(name: str, value: float) -> float:
    """`value`, if one can calculate with it: a file may have whole numbers of any length."""
    if abs(value) > _LARGEST_NUMBER:
        raise RequestError(sentence("{name}={value} is too large", name=name, value=brief(value)))
    return value


def unsupported(name: str, value: Any, fits: Any) -> RequestError:
    """The error for a value that nothing here has. `fits`: the values that there are."""
    text = sentence("{name}={value} is not supported here; only {fits}", name=name, value=brief(value), fits=listed(fits))
    return RequestError(text)


def brief(value: Any) -> str:
    """A value as text, shortened: it may be a whole file."""
    text = str(value).lower() if isinstance(value, bool) else str(value)
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 1]}…"
