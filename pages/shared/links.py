"""A choice as the compact code that the address bar carries, such as gpt-tiny~dp2.tp2.pp2~1f1b~m4~b2~n20~r0.003~e0.

Model, layout and schedule come first, in that order; each other field is a letter and its value, in any order, and
takes its default when absent. A model without a name in the catalog is written with its sizes, and with the parts that differ
from its family's: gpt.l4.h64.a4.v256.s64.f0.norm-rms.tied-false.
Numbers that do not fit together are valid in a link: the form says what is wrong.
"""

from __future__ import annotations

import base64
import binascii
import re
from typing import Any

from engine import catalog
from engine.schedule import SCHEDULES
from engine.spec import LayoutSpec, ModelSpec, RequestError, sentence
from pages.shared.choice import DEFAULTS, Bounds, Choice, options
from pages.shared.link_numbers import shortest_text

_BETWEEN, _LONGEST = "~", 2000
_SHAPE = {
    "l": "model.layers",
    "h": "model.hidden",
    "a": "model.heads",
    "v": "model.vocab",
    "s": "model.seq",
    "f": "model.ffn",
    "k": "model.kv_heads",
    "w": "model.head_dim",
    "d": "model.decoder_layers",
}
# The other fields of a model, which have names in a link: few models have them.
_CHOSEN = tuple(f"model.{name}" for name in ModelSpec.model_fields if name != "family" and f"model.{name}" not in _SHAPE.values())
LETTERS = {
    "m": "workload.microbatches",
    "b": "workload.microbatch_size",
    "n": "workload.steps",
    "r": "workload.learning_rate",
    "e": "workload.seed",
    "c": "layout.chunks",
    "k": "layout.split",
    "d": "layout.context_parallel",
    "z": "layout.zero",
    "q": "layout.sequence_parallel",
    "a": "layout.recompute",
    "R": "layout.recompute_layers",
    "N": "layout.recompute_every",
    "o": "workload.optimizer",
    "u": "workload.momentum",
    "f": "workload.precision",
    "g": "workload.accumulate",
    "h": "workload.bf16_optimizer",
    "i": "workload.attention",
    "l": "workload.loss_chunk",
    "x": "workload.text",
    "t": "workload.time_limit",
    "y": "generate.prompt",
    "w": "generate.new_tokens",
    "v": "generate.temperature",
    "s": "generate.skip_training",
    "j": "workload.weights",
    "p": "parity",
    "E": "layout.ep",
    "B": "workload.balanced_router",
    "Z": "layout.zero_replicas",
}
# Always written, so that a link stays the same if defaults change. Other fields are written if they differ from the default.
_ALWAYS = ("m", "b", "n", "r", "e")
_PROMPT, _TEMPERATURE = "generate.prompt", "generate.temperature"
_FORMER_TEMPERATURE = 0.0  # the default when links with a prompt did not always have it
_RECOMPUTE = "layout.recompute"  # its plus signs are full stops in a link: in an address they would be spaces
_LONGEST_NUMBER = 30  # letters; a float has up to 24
_FORMS = {"layout.split": re.compile(r"\d{1,4}(\.\d{1,4})*"), "workload.text": re.compile(r"[0-9a-f]{16}")}


class LinkError(Exception):
    """The code in a link cannot be read. The message is one sentence for the user, which can be translated."""

    @property
    def sentence(self) -> str:
        return self.args[0]


def encode(choice: Choice) -> str:
    parts = [_model_code(choice), choice.mesh.code, choice["layout.schedule"]]
    for letter, field in LETTERS.items():
        always = letter in _ALWAYS or (field == _TEMPERATURE and choice[_PROMPT])
        if always or choice[field] != DEFAULTS[field]:
            written = _written(field, choice[field])
            if written is not None:
                parts.append(letter + written)
    return _BETWEEN.join(parts)


def decode(code: str) -> Choice:
    """Raises `LinkError`."""
    parts = code.split(_BETWEEN)
    if len(parts) < 3 or len(code) > _LONGEST:
        raise LinkError(sentence("The link's choice “{code}” is not of the form gpt-tiny~dp2.tp2.pp2~1f1b.", code=code[:60]))
    model, layout, schedule, *others = parts
    values = DEFAULTS | _model(model)
    try:
        values |= {f"layout.{axis}": _within(f"layout.{axis}", degree) for axis, degree in LayoutSpec.degrees(layout).items()}
    except RequestError as error:
        raise LinkError(sentence("The link's {error}.", error=error.sentence)) from error
    if schedule not in SCHEDULES:
        names = ", ".join(SCHEDULES)
        raise LinkError(sentence("The link names the schedule “{name}”; there are {names}.", name=schedule[:30], names=names))
    values["layout.schedule"] = schedule
    given: dict[str, Any] = {}
    for part in others:
        field = LETTERS.get(part[:1])
        if field is None:
            raise LinkError(sentence("The link's part “{part}” is not known.", part=part[:30]))
        given[field] = _read(field, part[1:])
    if _PROMPT in given:
        given.setdefault(_TEMPERATURE, _FORMER_TEMPERATURE)
    return Choice(values | given)


def model_to_link(model: ModelSpec) -> str:
    """A model by itself: its name in the catalog, or its sizes and parts."""
    return _model_code(Choice(DEFAULTS | {f"model.{name}": value for name, value in model}))


def model_of_link(code: str) -> ModelSpec:
    """Raises `LinkError` if the code cannot be read, and `RequestError` if the sizes do not go together."""
    return ModelSpec.model_validate({field.removeprefix("model."): value for field, value in _model(code).items()})


def _model_code(choice: Choice) -> str:
    name = choice.model_name
    if name != "custom":
        return name
    # The last three differ from the defaults for few models. Otherwise they are left out.
    shape = (f"{letter}{choice[field]}" for letter, field in _SHAPE.items() if letter not in "kwd" or choice[field])
    chosen = (_chosen_text(field, choice[field]) for field in _CHOSEN if choice[field] != DEFAULTS[field])
    return ".".join((choice["model.family"], *shape, *chosen))


def _model(part: str) -> dict[str, Any]:
    if part in catalog.MODELS or part in catalog.ALIASES:
        return {f"model.{name}": value for name, value in catalog.model(part)}
    family, *pieces = part.split(".")
    shape, chosen = [piece for piece in pieces if "-" not in piece], [piece for piece in pieces if "-" in piece]
    pairs = [re.fullmatch(r"([a-z])(\d{1,9})", piece) for piece in shape]
    letters = "".join(pair[1] for pair in pairs if pair)
    if family not in options("model.family") or not all(pairs) or not re.fullmatch("lhavsfk?w?d?", letters):
        raise LinkError(
            sentence(
                "The link's model “{part}” is neither a name, such as {names}, nor of the form gpt.l4.h64.a4.v256.s64.f0.",
                part=part[:60],
                names=", ".join(catalog.SUCH_AS),
            )
        )
    numbers = {_SHAPE[pair[1]]: _within(_SHAPE[pair[1]], int(pair[2])) for pair in pairs if pair}
    return {"model.family": family} | numbers | dict(map(_chosen, chosen))


def _chosen_text(field: str, value: Any) -> str:
    """A full stop separates the parts of a model, so the point of a decimal fraction is an underscore."""
    text = shortest_text(value).replace(".", "_") if isinstance(value, float) else str(value)
    return f"{field.removeprefix('model.')}-{text}".lower()


def _chosen(piece: str) -> tuple[str, Any]:
    """A part of the model, or a number that few models have."""
    name, _, text = piece.partition("-")
    field = f"model.{name}"
    if field not in _CHOSEN:
        raise LinkError(sentence("The link's part “{part}” is not known.", part=piece[:30]))
    value = _read(field, text.replace("_", ".") if isinstance(DEFAULTS[field], float) else text)
    return field, {"true": True, "false": False}.get(value, value)


def _written(field: str, value: Any) -> str | None:
    """A field's value as text in a link. None if it cannot be in a link, such as a split that is not a list of numbers."""
    if field == _PROMPT:
        text = base64.urlsafe_b64encode(value.encode()).decode().rstrip("=")
        return text if len(text) <= _LONGEST // 2 else None
    if field in _FORMS:
        text = str(value).replace(" ", "").replace(",", ".")
        return text if _FORMS[field].fullmatch(text) else None
    if isinstance(value, bool):
        return ""
    if field == _RECOMPUTE:
        return str(value).replace("+", ".")
    return shortest_text(value) if isinstance(value, float) else str(value)


def _read(field: str, text: str) -> Any:
    unreadable = LinkError(sentence("The link's {field} “{text}” cannot be read.", field=field, text=text[:30]))
    if field == _PROMPT:
        try:
            return base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True).decode()
        except (binascii.Error, ValueError):
            raise unreadable from None
    if field in _FORMS:
        if not _FORMS[field].fullmatch(text):
            raise unreadable
        return text.replace(".", ",") if field == "layout.split" else text
    if field == _RECOMPUTE:
        text = text.replace(".", "+") if text != "selective" else "core_attn"  # as in links of old
    kind = type(DEFAULTS[field])
    if kind is bool:
        if text:
            raise unreadable
        return True
    if names := options(field):
        if text not in names:
            raise LinkError(
                sentence(
                    "The link's {field} “{text}” is not one of {names}.", field=field, text=text[:30], names=", ".join(names)
                )
            )
        return text
    if len(text) > _LONGEST_NUMBER:  # a whole number may have so many digits that it cannot be written as a decimal fraction
        raise unreadable
    try:
        return _within(field, kind(text))
    except ValueError:
        raise LinkError(sentence("The link's {field} “{text}” is not a number.", field=field, text=text[:30])) from None


def _within(field: str, value: Any) -> Any:
    bounds = Bounds.of(field)
    if not bounds.least <= value <= bounds.most:
        raise LinkError(
            sentence(
                "The link's {field}={value:g} is not between {least:g} and {most:g}.",
                field=field,
                value=value,
                least=bounds.least,
                most=bounds.most,
            )
        )
    return value
