"""JSON that comes from anybody: no larger and no deeper than it need be, and without a name given twice."""

from __future__ import annotations

import json
import math
import re
from typing import Any, NoReturn

from engine.spec.errors import RequestError, too_large
from engine.spec.sentence import sentence

LARGEST = 1 << 20  # bytes
DEEPEST = 10  # lists and objects inside each other
MOST_VALUES = 200_000  # an empty list takes three characters and two hundred bytes of memory

_TEXTS = re.compile(r'"(?:[^"\\]++|\\.)*+"', re.DOTALL)
_BRACKETS = re.compile(r"[\[\]{}]")


def parsed(text: str | bytes, name: str) -> Any:
    """What the JSON `text` says. Raises `RequestError`, calling it `name`, before it has taken more memory than it may.

    Stricter than Python's own reader: no NaN and no infinity, which JSON has not; no half of a surrogate pair, which is no text.
    """
    if len(text) > LARGEST:
        raise RequestError(too_large(name, len(text), LARGEST))
    try:
        written = (text if isinstance(text, str) else text.decode()).removeprefix(
            "\ufeff"
        )  # with which some editors begin a file
        _bounded(_TEXTS.sub("", written), name)
        value = json.loads(written, object_pairs_hook=_named_once, parse_float=_finite, parse_constant=_no_number)
        json.dumps(value, ensure_ascii=False).encode()  # only to see whether every text in it can be written
    except UnicodeEncodeError as error:
        raise RequestError(sentence("{name} has half of a surrogate pair in a text, which is none", name=name)) from error
    except ValueError as error:
        raise RequestError(sentence("{name} is not JSON: {error}", name=name, error=str(error))) from error
    return value


def _bounded(bare: str, name: str) -> None:
    """`bare`: the text without what stands in quotes."""
    if bare.count(",") + bare.count("[") + bare.count("{") > MOST_VALUES:
        raise RequestError(sentence("{name} has more than {most:,} values", name=name, most=MOST_VALUES))
    depth = 0
    for bracket in _BRACKETS.findall(bare):
        depth += 1 if bracket in "[{" else -1
        if depth > DEEPEST:
            raise RequestError(sentence("{name} has lists or objects more than {most} deep", name=name, most=DEEPEST))


def _named_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise RequestError(sentence("{name!r} is given twice in one object", name=twice[:60]))
    return found


def _finite(digits: str) -> float:
    value = float(digits)
    return value if math.isfinite(value) else _no_number(digits)


def _no_number(said: str) -> NoReturn:
    raise ValueError(f"{said[:20]} is no number")
