"""What a form holds: every field of a spec, whether or not they fit together yet.

A choice maps a spec's dotted field, such as "layout.tp", to its value. Forms show it, links carry it, and `read` makes
a `RunSpec` of it, or says what does not fit and which changes would help. A field that a spec gains is in every choice
at once, with its default.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, Literal, get_args, get_origin

from engine import catalog
from engine.launch import limits
from engine.spec import (
    GenerateSpec,
    LayoutSpec,
    Misfit,
    ModelSpec,
    RequestError,
    RunSpec,
    Spec,
    WorkloadSpec,
    generation_misfits,
    misfits,
    sentence,
)
from engine.topology import AXES, AXES_AS_WRITTEN, Mesh
from pages.charts.words import Words, words
from pages.shared.texts import Texts

_PARTS: dict[str, type[Spec]] = {"model": ModelSpec, "layout": LayoutSpec, "workload": WorkloadSpec, "generate": GenerateSpec}
# A split is kept as it was typed, and a text by its name in `Texts`; both are empty for "the usual".
_AS_TEXT = {"layout.split": "", "workload.text": ""}

DEFAULTS: dict[str, Any] = {
    f"{part}.{name}": _AS_TEXT.get(f"{part}.{name}", field.default)
    for part, spec in _PARTS.items()
    for name, field in spec.model_fields.items()
} | {"parity": False}


@dataclass(frozen=True)
class Bounds:
    """The least and the greatest value that a number takes by itself."""

    least: float
    most: float

    @classmethod
    def of(cls, field: str) -> Bounds:
        part, name = field.split(".")
        ends = {
            end: getattr(rule, end)
            for rule in _PARTS[part].model_fields[name].metadata
            for end in ("ge", "gt", "le", "lt")
            if hasattr(rule, end)
        }
        return cls(ends.get("ge", ends.get("gt", 0)), ends.get("le", ends.get("lt", float("inf"))))


def options(field: str) -> tuple[str, ...]:
    """The names that a field chooses from; none if it holds something else."""
    part, _, name = field.partition(".")
    kind = _PARTS[part].model_fields[name].annotation if name else None
    return get_args(kind) if get_origin(kind) is Literal else ()


def description(field: str) -> str:
    """What the spec says of a field, as the help of a form."""
    part, _, name = field.partition(".")
    described = _PARTS[part].model_fields[name] if name else RunSpec.model_fields[part]
    return described.description or ""


@dataclass(frozen=True)
class Fix:
    """Set `field` to `value`, and what did not fit does."""

    field: str
    value: Any

    def __str__(self) -> str:
        return self.said(words("en"))

    def said(self, say: Words) -> str:
        if self.value == "":
            return say("use the built-in text") if self.field == "workload.text" else say("split as even as can be")
        name = self.field.split(".")[-1]  # as links, files and the command line write it, in every language
        if self.field == "layout.sequence_parallel":
            return say("sequence parallel off")
        return f"{name}={self.value}"


@dataclass(frozen=True)
class Problem:
    """Something that does not fit, at the field to change first."""

    field: str
    sentence: str  # perhaps a `Sentence`, to be said in the reader's language
    fixes: tuple[Fix, ...] = ()


@dataclass(frozen=True)
class Choice:
    values: Mapping[str, Any]

    @classmethod
    def default(cls) -> Choice:
        """gpt-tiny as dp2.tp2.pp2: every axis has something to show, and every machine runs it in a second."""
        return cls(DEFAULTS | {"layout.dp": 2, "layout.tp": 2, "layout.pp": 2})

    @classmethod
    def of(cls, spec: RunSpec, texts: Texts) -> Choice:
        """The choice that would run `spec` again. A text that is not one of `texts` becomes the built-in one."""
        values: dict[str, Any] = {"parity": spec.parity}
        for part in _PARTS:
            values |= {f"{part}.{name}": value for name, value in getattr(spec, part)}
        values["layout.split"] = ",".join(map(str, spec.layout.split))
        values["workload.text"] = texts.name(spec.workload.text)
        return cls(values)

    def __getitem__(self, field: str) -> Any:
        return self.values[field]

    def having(self, changes: Mapping[str, Any]) -> Choice:
        return Choice({**self.values, **changes})

    @property
    def mesh(self) -> Mesh:
        return Mesh({axis: self[f"layout.{axis}"] for axis in AXES})

    @property
    def ranks(self) -> int:
        return self.mesh.size

    @property
    def model_name(self) -> str:
        """The catalog's name of the shape, or "custom"."""
        named = (name for name, known in catalog.MODELS.items() if all(self[f"model.{k}"] == v for k, v in known))
        return next(named, "custom")

    def part(self, name: str) -> dict[str, Any]:
        """The fields of one part of the spec, by their own names."""
        return {field.split(".")[1]: value for field, value in self.values.items() if field.startswith(name + ".")}

    def model(self) -> ModelSpec:
        """Raises `RequestError` if the shape is not possible."""
        return ModelSpec(**self.part("model"))

    def layout(self) -> LayoutSpec:
        """Raises `RequestError` if the split is not a list of numbers."""
        text = self["layout.split"].strip()
        try:
            split = tuple(int(part) for part in text.split(",")) if text else ()
        except ValueError:
            raise RequestError(sentence("split {text!r} is not a list of whole numbers such as 3,3,2", text=text)) from None
        return LayoutSpec(**self.part("layout") | {"split": split})

    def workload(self, texts: Texts) -> WorkloadSpec:
        """Raises `RequestError` if the text is not here."""
        name = self["workload.text"]
        path = texts.path(name) if name else None
        if name and path is None:
            raise RequestError(
                sentence("the text {name} is not on this machine; upload it again, or train on the built-in text", name=name)
            )
        return WorkloadSpec(**self.part("workload") | {"text": str(path) if path else None})

    def generate(self) -> GenerateSpec:
        return GenerateSpec(**self.part("generate"))


# The parts of a spec that may be impossible by themselves, by the field to change first.
_MAKERS: dict[str, Callable[[Choice, Texts], Any]] = {
    "model.heads": lambda choice, texts: choice.model(),
    "layout.split": lambda choice, texts: choice.layout(),
    "workload.text": lambda choice, texts: choice.workload(texts),
    "generate.prompt": lambda choice, texts: choice.generate(),
}


@dataclass(frozen=True)
class Verdict:
    """What a choice comes to: a spec, or the problems that keep it from being one.

    A spec can be predicted whatever its size; `refused` is why this machine cannot run it, if it cannot.
    """

    spec: RunSpec | None
    problems: tuple[Problem, ...] = ()
    refused: tuple[Problem, ...] = ()

    @property
    def runnable(self) -> RunSpec | None:
        return None if self.refused else self.spec


def read(choice: Choice, texts: Texts) -> Verdict:
    """The spec, or everything that keeps it from being one, with the changes that would help."""
    found = _problems(choice, texts)
    if found:
        helped = (replace(p, fixes=tuple(f for f in p.fixes if _helps(choice, p, f, found, texts))[:4]) for p in found)
        return Verdict(None, tuple(helped))
    spec = RunSpec(
        model=choice.model(),
        layout=choice.layout(),
        workload=choice.workload(texts),
        generate=choice.generate(),
        parity=choice["parity"],
    )
    return Verdict(spec, refused=_refused(choice, spec, texts))


def spec_of(choice: Choice, texts: Texts) -> RunSpec:
    """The spec alone. Raises `RequestError` with the first thing that does not fit."""
    verdict = read(choice, texts)
    if verdict.spec is None:
        raise RequestError(verdict.problems[0].sentence)
    return verdict.spec


def _refused(choice: Choice, spec: RunSpec, texts: Texts) -> tuple[Problem, ...]:
    """Why this machine cannot run what fits together; the queue asks again when it is submitted."""
    if choice.ranks > limits.MOST_RANKS:
        told = sentence(
            "{product} = {ranks} ranks; one machine runs at most {most}, and the prediction stands all the same",
            product=choice.mesh.product,
            ranks=choice.ranks,
            most=limits.MOST_RANKS,
        )
        smaller = (fix for fix in _fewer_ranks(choice) if not _problems(choice.having({fix.field: fix.value}), texts))
        return (Problem("layout.dp", told, tuple(islice(smaller, 4))),)
    try:
        limits.check(spec)
    except RequestError as error:
        return (Problem("model.layers", error.sentence),)
    return ()


def _problems(choice: Choice, texts: Texts) -> list[Problem]:
    found: list[Problem] = []
    made: dict[str, Any] = {}
    for field, make in _MAKERS.items():
        try:
            made[field] = make(choice, texts)
        except RequestError as error:
            found.append(Problem(field, error.sentence, _fixes(choice, field, ())))
    if not found:
        model, layout, workload, generate = made.values()
        unfit: list[Misfit] = misfits(model, layout, workload)
        unfit += generation_misfits(generate, model, layout, choice["parity"])
        found += [Problem(m.field, m.sentence, _fixes(choice, m.field, m.choices)) for m in unfit]
    return found


def _fixes(choice: Choice, field: str, choices: tuple[int, ...]) -> tuple[Fix, ...]:
    if field == "model.heads":  # the shape itself: heads must divide the width
        hidden, heads = choice["model.hidden"], choice["model.heads"]
        divisors = [d for d in range(1, min(hidden, int(Bounds.of(field).most)) + 1) if hidden % d == 0]
        return tuple(Fix(field, d) for d in sorted(divisors, key=lambda d: (abs(d - heads), d)))
    if field in _AS_TEXT:
        return (Fix(field, ""),)
    if field not in DEFAULTS:
        return ()
    kind = type(DEFAULTS[field])
    return tuple(Fix(field, kind(value)) for value in choices)


def _fewer_ranks(choice: Choice) -> tuple[Fix, ...]:
    """On each axis the largest degree that leaves room, the gentlest change first."""
    fixes = []
    for field in (f"layout.{axis}" for axis in AXES_AS_WRITTEN):
        room = limits.MOST_RANKS * choice[field] // choice.ranks
        fixes += [Fix(field, degree) for degree in range(room, 0, -1)]
    return tuple(sorted(fixes, key=lambda f: choice[f.field] / f.value))


def _helps(choice: Choice, problem: Problem, fix: Fix, found: list[Problem], texts: Texts) -> bool:
    """Whether a change removes `problem` and makes none of its own where there was none among those `found`."""
    left = {p.field for p in _problems(choice.having({fix.field: fix.value}), texts)}
    unseen = problem.field in _MAKERS  # what a part that could not be made kept from being seen
    return problem.field not in left and (unseen or left <= {p.field for p in found})
