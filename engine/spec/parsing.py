"""A reader of JSON that is not trusted: it limits size and depth, and refuses a name that occurs twice in one object."""

from __future__ import annotations

import json
import math
import re
from typing import Any, NoReturn

from engine.spec.errors import RequestError, too_large
from engine.spec.sentence import sentence

LARGEST = 1 << 20  # bytes
DEEPEST = 10  # levels of lists and objects
MOST_VALUES = 200_000  # values take more memory than text: an empty list, three characters, takes some 200 bytes

_TEXTS = re.compile(r'"(?:[^"\\]++|\\.)*+"', re.DOTALL)
_BRACKETS = re.compile(r"[\[\]{}]")


def parsed(text: str | bytes, name: str) -> Any:
    """The value of the JSON `text`. Raises `RequestError` that calls it `name`, before much memory is allocated.

    Stricter than Python's own reader. It refuses NaN and infinity, which are not JSON, and half of a surrogate pair, which cannot
    be encoded.
    """
    if len(text) > LARGEST:
        raise RequestError(too_large(name, len(text), LARGEST))
    try:
        decoded = text if isinstance(text, str) else text.decode()
        content = decoded.removeprefix("\ufeff")  # the byte order mark that some editors write at the start of a file
        _refuse_too_complex(_TEXTS.sub("", content), name)
        value = json.loads(content, object_pairs_hook=_without_duplicates, parse_float=_finite, parse_constant=_no_number)
        json.dumps(value, ensure_ascii=False).encode()  # only to check that every text in it can be encoded
    except UnicodeEncodeError as error:
        raise RequestError(sentence("{name} has an unpaired surrogate in a text", name=name)) from error
    except ValueError as error:
        raise RequestError(sentence("{name} is not JSON: {error}", name=name, error=str(error))) from error
    return value


def _refuse_too_complex(bare: str, name: str) -> None:
    """Raise `RequestError` if there are too many values or levels. `bare`: the JSON without its quoted strings."""
    if bare.count(",") + bare.count("[") + bare.count("{") > MOST_VALUES:
        raise RequestError(sentence("{name} has more than {most:,} values", name=name, most=MOST_VALUES))
    depth = 0
    for bracket in _BRACKETS.findall(bare):
        depth += 1 if bracket in "[{" else -1
        if depth > DEEPEST:
            raise RequestError(sentence("{name} has lists or objects more than {most} deep", name=name, most=DEEPEST))


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise RequestError(sentence("{name!r} is given twice in one object", name=twice[:60]))
    return found


def _finite(digits: str) -> float:
    value = float(digits)
    return value if math.isfinite(value) else _no_number(digits)


def _no_number(digits: str) -> NoReturn:
    raise ValueError(f"{digits[:20]} is no number")
