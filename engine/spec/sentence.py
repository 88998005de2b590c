"""Sentences for users that pages can translate. The engine itself writes English.

A `Sentence` is an English `str`, so it can be printed, compared and sent as any other. It also keeps its template and values. A
page looks the template up in its translation catalog. Values may be sentences themselves.
"""

from __future__ import annotations

from typing import Any

_QUOTED = 60  # letters


class Sentence(str):
    """An English text, with its template and values."""

    template: str
    values: dict[str, Any]


def sentence(template: str, **values: Any) -> Sentence:
    """`template` with `values` in place of their names in braces. Write the template as one literal: it is a catalog's key."""
    return _made(template, values)


def brief(text: str) -> str:
    """A text of a user's, shortened to be quoted in a sentence: it may be a whole file in the wrong place."""
    return text if len(text) <= _QUOTED else f"{text[: _QUOTED - 1]}…"


def joined(first: Sentence, *others: Sentence) -> Sentence:
    """Several sentences joined into one, with semicolons."""
    for other in others:
        first = sentence("{first}; {second}", first=first, second=other)
    return first


def packed(text: str) -> Any:
    """A sentence as a JSON value, to send it to another process. Any other text is unchanged."""
    if not isinstance(text, Sentence):
        return text
    values = {name: packed(value) if isinstance(value, str) else value for name, value in text.values.items()}
    return {"template": text.template, "values": values}


def unpacked(value: Any) -> Any:
    """The sentence or text from which `packed` made `value`."""
    if not isinstance(value, dict):
        return value
    return _made(value["template"], {name: unpacked(inner) for name, inner in value["values"].items()})


def _made(template: str, values: dict[str, Any]) -> Sentence:
    made = Sentence(template.format(**values))
    made.template, made.values = template, values
    return made
