"""The flags of a spec: one for every field of the model, the layout and the workload, with its description and default."""

from __future__ import annotations

import argparse
import types
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NoReturn, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from engine.command import models
from engine.launch.request import read_spec
from engine.spec import LayoutSpec, RequestError, RunSpec, Spec, names_in
from engine.topology import AXES

_ABSENT: Any = argparse.SUPPRESS  # flags that were not given are missing from the namespace, not set to their default


class Parser(argparse.ArgumentParser):
    """An argument parser that raises `RequestError`. It does not accept abbreviated flags."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options | {"allow_abbrev": False})

    def error(self, message: str) -> NoReturn:
        raise RequestError(f"{message}; {self.prog} --help shows what there is")


@dataclass(frozen=True)
class _Leaf:
    """A field of the spec that has a value. `part`: "model", "layout", "workload" and so on; "" for the fields of `RunSpec`."""

    part: str
    name: str
    field: FieldInfo

    @property
    def option(self) -> str:
        return "--" + self.name.replace("_", "-")

    @property
    def key(self) -> str:
        return f"{self.part}.{self.name}"


def add(parser: argparse.ArgumentParser) -> None:
    """Add the flags of a `RunSpec`."""
    whole = parser.add_argument_group("what to run")
    whole.add_argument("--spec", metavar="FILE", help="a spec as JSON in place of the flags below; - reads standard input")
    whole.add_argument("--model", default=_ABSENT, metavar="NAME|FILE", help=f"{models.HELP} (default gpt-tiny)")
    whole.add_argument("--settings", default=_ABSENT, metavar="FILE", help=models.SETTINGS_HELP)
    whole.add_argument("--layout", default=_ABSENT, metavar="CODE", help="dp, tp and pp in short, such as dp2.tp2.pp2")
    groups = {"": whole}
    for leaf in _leaves():
        if leaf.part not in groups:
            groups[leaf.part] = parser.add_argument_group(leaf.part)
        _add_leaf(groups[leaf.part], leaf)


def read(arguments: argparse.Namespace) -> RunSpec:
    """The spec that the flags ask for. Raises `RequestError`."""
    given = vars(arguments)
    leaves = [leaf for leaf in _leaves() if leaf.key in given]
    if arguments.spec is not None:
        extra = [f"--{name}" for name in ("model", "settings", "layout") if name in given] + [leaf.option for leaf in leaves]
        if extra:
            raise RequestError(f"--spec holds the whole request, so {' and '.join(extra)} cannot be given with it")
        return read_spec(arguments.spec)
    request: dict[str, Any] = {}
    for name in ("settings", "model"):
        if name in given:
            request |= models.parts_of_request(given[name], given.get("model.vocab"))
    if "layout" in given:
        request.setdefault("layout", {}).update(LayoutSpec.degrees(arguments.layout))
        twice = [axis for axis in AXES if f"layout.{axis}" in given and axis in arguments.layout]
        if twice:
            flags = " and ".join(f"--{axis}" for axis in twice)
            raise RequestError(
                f"--layout {arguments.layout} says {' and '.join(twice)} already, so {flags} cannot be given with it"
            )
    for leaf in leaves:
        part = request.setdefault(leaf.part, {}) if leaf.part else request
        part[leaf.name] = _value(leaf, given[leaf.key])
    return RunSpec.model_validate(request)


def _leaves() -> Iterator[_Leaf]:
    for name, field in RunSpec.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, Spec):
            yield from (_Leaf(name, inner, of) for inner, of in kind.model_fields.items())
        else:
            yield _Leaf("", name, field)


def _add_leaf(group: argparse._ArgumentGroup, leaf: _Leaf) -> None:
    kind, default = leaf.field.annotation, leaf.field.default
    text = (leaf.field.description or "").replace("%", "%%")
    if kind is bool:
        group.add_argument(leaf.option, dest=leaf.key, action="store_true", default=_ABSENT, help=text)
        return
    if default not in (None, ()):
        text += f" (default {default})"
    # The values are text here. The spec validates them, with its own messages.
    names = names_in(kind)
    shown = "{" + ",".join(names) + "}" if names else leaf.name.upper()
    group.add_argument(leaf.option, dest=leaf.key, default=_ABSENT, metavar=shown, help=text)


def _value(leaf: _Leaf, given: Any) -> Any:
    """The text on the command line, as the value that the spec validates."""
    kind = leaf.field.annotation
    if get_origin(kind) is tuple:
        return given.split(",")
    if get_origin(kind) in (Union, types.UnionType):
        reader = next((one.read for one in get_args(kind) if hasattr(one, "read")), None)
        return reader(given) if reader else given
    return given
