"""A choice as the compact code that the address bar carries, such as gpt-tiny~dp2.tp2.pp2~1f1b~m4~b2~n20~r0.003~e0.

Model, layout and schedule come first, in that order; each other field is a letter and its value, in any order, and
takes its default when absent. A model that has no name in the catalog is written out: l4.h64.a4.v256.s64.f0. Numbers
that do not fit together make a good link all the same: the form says what is wrong with them.
"""

from __future__ import annotations

import re
from typing import Any

from engine import catalog
from engine.schedule import SCHEDULES
from engine.spec import LayoutSpec, RequestError
from pages.shared.choice import DEFAULTS, MODEL_FIELDS, Bounds, Choice

_BETWEEN = "~"
_SHAPE = dict(zip("lhavsf", MODEL_FIELDS, strict=True))
_LETTERS = {
    "m": "workload.microbatches",
    "b": "workload.microbatch_size",
    "n": "workload.steps",
    "r": "workload.learning_rate",
    "e": "workload.seed",
    "t": "workload.time_limit",
    "k": "layout.split",
    "x": "workload.text",
    "p": "parity",
}
# Written only when they differ from the default; the others always, so that a link outlives a change of defaults.
_SELDOM = ("t", "k", "x", "p")
_FORMS = {
    "layout.split": re.compile(r"\d{1,4}(\.\d{1,4})*"),
    "workload.text": re.compile(r"[0-9a-f]{16}"),
    "parity": re.compile(""),
}


class LinkError(Exception):
    """The code in a link cannot be read. The message is one sentence for the user."""


def encode(choice: Choice) -> str:
    name = choice.model_name
    model = name if name != "custom" else ".".join(f"{letter}{choice[field]}" for letter, field in _SHAPE.items())
    parts = [model, choice.layout_code, choice["layout.schedule"]]
    for letter, field in _LETTERS.items():
        if letter not in _SELDOM or choice[field] != DEFAULTS[field]:
            written = _written(field, choice[field])
            if written is not None:
                parts.append(letter + written)
    return _BETWEEN.join(parts)


def decode(code: str) -> Choice:
    """Raises `LinkError`."""
    parts = code.split(_BETWEEN)
    if len(parts) < 3 or len(code) > 1000:
        raise LinkError(f"The link's choice “{code[:60]}” is not of the form gpt-tiny~dp2.tp2.pp2~1f1b.")
    model, layout, schedule, *others = parts
    values = DEFAULTS | _model(model)
    try:
        values |= {f"layout.{axis}": _within(f"layout.{axis}", degree) for axis, degree in LayoutSpec.degrees(layout).items()}
    except RequestError as error:
        raise LinkError(f"The link's {error}.") from error
    if schedule not in SCHEDULES:
        raise LinkError(f"The link names the schedule “{schedule[:30]}”; there are {', '.join(SCHEDULES)}.")
    values["layout.schedule"] = schedule
    for part in others:
        field = _LETTERS.get(part[:1])
        if field is None:
            raise LinkError(f"The link's part “{part[:30]}” is not known.")
        values[field] = _read(field, part[1:])
    return Choice(values)


def _model(part: str) -> dict[str, Any]:
    if part in catalog.MODELS:
        return {f"model.{name}": value for name, value in catalog.MODELS[part]}
    pairs = re.findall(r"([a-z])(\d{1,9})(?:\.|$)", part)
    if [letter for letter, _ in pairs] != list(_SHAPE) or ".".join(map("".join, pairs)) != part:
        names = ", ".join(catalog.MODELS)
        raise LinkError(f"The link's model “{part[:60]}” is neither one of {names} nor of the form l4.h64.a4.v256.s64.f0.")
    return {_SHAPE[letter]: _within(_SHAPE[letter], int(digits)) for letter, digits in pairs}


def _written(field: str, value: Any) -> str | None:
    """A field's value as it stands in a link; None for what cannot stand there, such as a split that is no list."""
    if field in _FORMS:
        text = "" if field == "parity" else str(value).replace(" ", "").replace(",", ".")
        return text if _FORMS[field].fullmatch(text) else None
    return f"{value:g}" if isinstance(value, float) else str(value)


def _read(field: str, text: str) -> Any:
    if field in _FORMS:
        if not _FORMS[field].fullmatch(text):
            raise LinkError(f"The link's {field} “{text[:30]}” cannot be read.")
        return True if field == "parity" else text.replace(".", ",") if field == "layout.split" else text
    kind = type(DEFAULTS[field])
    try:
        return _within(field, kind(text))
    except ValueError:
        raise LinkError(f"The link's {field} “{text[:30]}” is not a number.") from None


def _within(field: str, value: Any) -> Any:
    bounds = Bounds.of(field)
    if not bounds.least <= value <= bounds.most:
        raise LinkError(f"The link's {field}={value:g} is not between {bounds.least:g} and {bounds.most:g}.")
    return value
