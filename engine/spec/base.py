"""The base of every record of a spec: it is frozen, refuses unknown fields, and reports errors in one sentence."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Literal, Self, get_args, get_origin

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from engine.spec.errors import RequestError
from engine.spec.parsing import parsed
from engine.spec.sentence import brief, sentence


class Spec(BaseModel):
    """A frozen record that refuses unknown fields. Validation errors become a `RequestError` with one sentence."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @model_validator(mode="wrap")
    @classmethod
    def _one_sentence(cls, value: Any, handler: Any) -> Self:
        try:
            return handler(value)
        except ValidationError as error:
            raise RequestError(_sentence(cls, error)) from None

    @classmethod
    def read_json(cls, text: str | bytes) -> Self:
        """Read what `model_dump_json` wrote. Raises `RequestError`, also for text that is not JSON."""
        return cls.model_validate(parsed(text, sentence("this")))


def names_in(kind: Any) -> tuple[str, ...]:
    """The names among which a field of that type chooses; none if it does not. None is not one of them: it is left out."""
    kinds = [one for one in get_args(kind) if one is not type(None)]
    if get_origin(kind) is Literal:
        return tuple(map(str, kinds))
    if len(kinds) != 1:
        return ()
    return ("true", "false") if kinds[0] is bool else names_in(kinds[0])


# The sentence for each of pydantic's error types. The arguments are the error's context.
_RULES: dict[str, Callable[..., str]] = {
    "greater_than": lambda gt: sentence("must be greater than {gt}", gt=gt),
    "greater_than_equal": lambda ge: sentence("must be greater than or equal to {ge}", ge=ge),
    "less_than": lambda lt: sentence("must be less than {lt}", lt=lt),
    "less_than_equal": lambda le: sentence("must be less than or equal to {le}", le=le),
    "literal_error": lambda expected: sentence("must be {expected}", expected=expected),
    **dict.fromkeys(("int_type", "int_parsing", "int_from_float"), lambda **_: sentence("must be a whole number")),
    **dict.fromkeys(("float_type", "float_parsing"), lambda **_: sentence("must be a number")),
    "finite_number": lambda **_: sentence("must be a finite number"),
    **dict.fromkeys(("bool_type", "bool_parsing"), lambda **_: sentence("must be true or false")),
    "string_type": lambda **_: sentence("must be text"),
    **dict.fromkeys(("tuple_type", "list_type"), lambda **_: sentence("must be a list")),
}
_NO_OBJECT = ("model_type", "model_attributes_type", "dict_type")  # the value is not an object


def _sentence(cls: type[BaseModel], error: ValidationError) -> str:
    """The first of pydantic's errors in words, and the number of further ones. All missing fields are one error."""
    found = error.errors()
    first = found[0]
    more = len(found) - 1
    name = brief(".".join(str(part) for part in first["loc"]) or _name_of(cls))
    if first["type"] == "extra_forbidden":
        fields = ", ".join(cls.model_fields)
        text = sentence("there is no field {name!r}; {record} has {fields}", name=name, record=_name_of(cls), fields=fields)
    elif first["type"] == "missing":
        missing = [".".join(map(str, one["loc"])) for one in found if one["type"] == "missing"]
        more = len(found) - len(missing)
        text = sentence("{record} needs {names}", record=_name_of(cls), names=", ".join(missing))
    elif first["type"] in _NO_OBJECT and not first["loc"]:
        fields = ", ".join(list(cls.model_fields)[:3])
        text = sentence(
            "{name} must be an object with fields such as {fields}, not {value}",
            name=name,
            fields=fields,
            value=_brief(first["input"]),
        )
    else:
        said = re.sub(r"^\w+ should", "must", first["msg"])  # "Input should be …", "String should have …"
        if first["type"] in _RULES:
            said = _RULES[first["type"]](**first.get("ctx", {}))
        if not first["loc"]:
            text = sentence("{name} {said}", name=name, said=said)
        else:
            text = sentence("{name}={value} {said}", name=name, value=_brief(first["input"]), said=said)
    return sentence("{sentence} (and {count} more)", sentence=text, count=more) if more else text


def _name_of(cls: type[BaseModel]) -> str:
    """The name of a record for readers: that of the field that holds it, such as model for `ModelSpec`."""
    return "spec" if cls.__name__ == "RunSpec" else cls.__name__.removesuffix("Spec").lower()


def _brief(value: Any) -> str:
    return brief(repr(value))
