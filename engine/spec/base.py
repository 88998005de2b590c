"""What every record of a spec has in common: it is frozen, refuses unknown fields, and complains in one sentence."""

from __future__ import annotations

import re
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator


class RequestError(Exception):
    """The request is wrong. The message is one sentence for the user."""


class Spec(BaseModel):
    """A frozen record that refuses unknown fields and speaks in sentences."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @model_validator(mode="wrap")
    @classmethod
    def _say_it_in_one_sentence(cls, value: Any, handler: Any) -> Self:
        try:
            return handler(value)
        except ValidationError as error:
            raise RequestError(_sentence(cls, error)) from None

    @classmethod
    def read_json(cls, text: str | bytes) -> Self:
        """Read what `model_dump_json` wrote. Raises `RequestError`, for text that is not JSON too."""
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            raise RequestError(_sentence(cls, error)) from None


def _sentence(cls: type[BaseModel], error: ValidationError) -> str:
    """The first thing pydantic found, in words, and how many more there are."""
    first = error.errors()[0]
    name = ".".join(str(part) for part in first["loc"]) or cls.__name__
    if first["type"] == "extra_forbidden":
        text = f"there is no field {name!r}; {cls.__name__} has {', '.join(cls.model_fields)}"
    elif first["type"] == "missing":
        text = f"{cls.__name__} needs {name!r}"
    elif first["type"] == "json_invalid":
        text = f"this is not JSON: {first['ctx']['error']}"
    else:
        said = re.sub(r"^\w+ should", "must", first["msg"])  # "Input should be …", "String should have …"
        text = f"{name}={_brief(first['input'])} {said}" if name != cls.__name__ else f"{cls.__name__} {said}"
    more = len(error.errors()) - 1
    return text + (f" (and {more} more)" if more else "")


def _brief(value: Any) -> str:
    """What was given, cut short: it may be a whole file that was put in the wrong place."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:59]}…"
