"""The words of a shell script as arguments: what follows each that begins with two dashes."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator

from engine.spec import RequestError, sentence

_ASSIGNMENT = re.compile(r"\s*(?:export\s+)?([A-Za-z_]\w*)=([^\s()]*)\s*(?:#.*)?")
_VARIABLE = re.compile(r"\$\{?(\w+)(?::-([^}]*))?\}?")
_DEEPEST = 5  # variables in values of variables
_BRACKETS = "()\\"
_SEVERAL = re.compile(r"[A-Za-z_]\w*=(.*\s.*)", re.DOTALL)  # words that a variable is set to


def arguments(text: str, name: str) -> dict[str, list[str]]:
    """The arguments of all commands of a script: by name, with underscores for dashes, the words that follow.

    Variables that the script sets, or that have a default, are replaced by their values. Raises `RequestError` if its quotes do
    not match, or if it has no arguments. `name`: of the file.
    """
    whole = text.replace("\\\n", " ")
    variables = {match[1]: match[2].strip("\"'") for line in whole.split("\n") if (match := _ASSIGNMENT.fullmatch(line))}
    found: dict[str, list[str]] = {}
    latest = ""
    try:
        for word in _split(whole):
            bare = word.strip(_BRACKETS)
            if bare.startswith("--"):
                latest, equals, value = bare[2:].replace("-", "_").partition("=")
                found[latest] = [_replaced(value, variables)] if equals else []
            elif latest and bare:
                found[latest].append(_replaced(bare, variables))
    except ValueError as error:
        raise RequestError(sentence("{name} is not a script: {error}", name=name, error=str(error))) from error
    found.pop("", None)
    if not found:
        raise RequestError(sentence("{name} has no arguments that begin with two dashes", name=name))
    return found


def _split(text: str) -> Iterator[str]:
    """The words of a script, and those of each variable that is set to several. Raises `ValueError` if quotes do not match."""
    for word in shlex.split(text, comments=True):
        if several := _SEVERAL.fullmatch(word):
            yield from (part.strip("\"'") for part in several[1].split())
        else:
            yield word


def _replaced(text: str, variables: dict[str, str]) -> str:
    for _ in range(_DEEPEST):
        replaced = _VARIABLE.sub(lambda match: variables.get(match[1], match[2] or match[0]), text)
        if replaced == text:
            break
        text = replaced
    return text


def number_or_text(text: str) -> int | float | str:
    """A word as the number that it is, otherwise as it is."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
