"""Sentences for people that can be said in another language, by whoever knows it. The engine itself speaks English.

A `Sentence` is an English `str`, so it can be printed, matched and sent as any other. It also keeps what it was made of, the
template and its values, and that is what a page looks up in its catalog. Values may be sentences themselves.
"""

from __future__ import annotations

from typing import Any


class Sentence(str):
    """English, and what it was made of."""

    template: str
    values: dict[str, Any]


def sentence(template: str, **values: Any) -> Sentence:
    """`template` with `values` put in where it has their names in braces. Write it as one literal: that is a catalog's key."""
    return _made(template, values)


def joined(first: Sentence, *others: Sentence) -> Sentence:
    """Several sentences as one, with semicolons between them."""
    for other in others:
        first = sentence("{first}; {second}", first=first, second=other)
    return first


def packed(text: str) -> Any:
    """A sentence as JSON can carry it to another process; any other text as it is."""
    if not isinstance(text, Sentence):
        return text
    values = {name: packed(value) if isinstance(value, str) else value for name, value in text.values.items()}
    return {"template": text.template, "values": values}


def unpacked(carried: Any) -> Any:
    """What `packed` made, as the sentence it was."""
    if not isinstance(carried, dict):
        return carried
    return _made(carried["template"], {name: unpacked(value) for name, value in carried["values"].items()})


def _made(template: str, values: dict[str, Any]) -> Sentence:
    made = Sentence(template.format(**values))
    made.template, made.values = template, values
    return made
