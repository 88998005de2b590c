"""The content of a form: a value for every field of a spec, whether or not they fit together.

A choice maps a spec's dotted field, such as "layout.tp", to its value. Forms show it and links carry it. `read` makes a `RunSpec`
of it, or says what does not fit and which changes would help. A new field of a spec is part of every choice, with its default.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

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
    names_in,
    sentence,
)
from engine.topology import AXES, AXES_AS_WRITTEN, Mesh
from pages.charts.words import Words, words
from pages.shared.texts import Texts

_PARTS: dict[str, type[Spec]] = {"model": ModelSpec, "layout": LayoutSpec, "workload": WorkloadSpec, "generate": GenerateSpec}
# A split is stored as it was typed, a text by its name in `Texts`. Empty means the default.
_AS_TEXT = {"layout.split": "", "workload.text": ""}

DEFAULTS: dict[str, Any] = {
    f"{part}.{name}": _AS_TEXT.get(f"{part}.{name}", field.default)
    for part, spec in _PARTS.items()
    for name, field in spec.model_fields.items()
} | {"parity": False}

# Numbers of something, at least 1. A form and a link can hold 0, and the form says what is wrong.
COUNTS = (
    *(f"layout.{axis}" for axis in AXES_AS_WRITTEN),
    "layout.chunks",
    *(f"workload.{name}" for name in ("microbatches", "microbatch_size", "steps")),
)


@dataclass(frozen=True)
class Bounds:
    """The smallest and the largest value that a number field can hold."""

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
        least = ends.get("ge", ends.get("gt", 0))
        return cls(0 if field in COUNTS else least, ends.get("le", ends.get("lt", float("inf"))))


def options(field: str) -> tuple[str, ...]:
    """The allowed values of a field; none if it is not a choice of names."""
    part, _, name = field.partition(".")
    return names_in(_PARTS[part].model_fields[name].annotation) if name else ()


def description(field: str) -> str:
    """The description of a field in the spec, as help text."""
    part, _, name = field.partition(".")
    described = _PARTS[part].model_fields[name] if name else RunSpec.model_fields[part]
    return described.description or ""


@dataclass(frozen=True)
class Fix:
    """A change that solves a problem: set `field` to `value`."""

    field: str
    value: Any

    def __str__(self) -> str:
        return self.label(words("en"))

    def label(self, say: Words) -> str:
        if self.value == "":
            return say("use the built-in text") if self.field == "workload.text" else say("split as evenly as possible")
        name = self.field.split(".")[-1]  # the name in links, files and the command line, in every language
        if self.field == "layout.sequence_parallel":
            return say("sequence parallel off")
        return f"{name}={self.value}"


@dataclass(frozen=True)
class Problem:
    """Something that does not fit. `field` is the one to change first."""

    field: str
    sentence: str  # can be a `Sentence`, which is translated
    fixes: tuple[Fix, ...] = ()


@dataclass(frozen=True)
class Choice:
    values: Mapping[str, Any]

    @classmethod
    def default(cls) -> Choice:
        """gpt-tiny as dp2.tp2.pp2: it uses every axis, and every machine runs it in a second."""
        return cls(DEFAULTS | {"layout.dp": 2, "layout.tp": 2, "layout.pp": 2})

    @classmethod
    def of(cls, spec: RunSpec, texts: Texts) -> Choice:
        """The choice that makes `spec`. A text that is not one of `texts` becomes the built-in one."""
        values: dict[str, Any] = {"parity": spec.parity}
        for part in _PARTS:
            values |= {f"{part}.{name}": value for name, value in getattr(spec, part)}
        values["layout.split"] = ",".join(map(str, spec.layout.split))
        values["workload.text"] = texts.name(spec.workload.text)
        return cls(values)

    def __getitem__(self, field: str) -> Any:
        return self.values[field]

    def with_changes(self, changes: Mapping[str, Any]) -> Choice:
        return Choice({**self.values, **changes})

    @property
    def mesh(self) -> Mesh:
        return Mesh({axis: self[f"layout.{axis}"] for axis in AXES})

    @property
    def ranks(self) -> int:
        return self.mesh.size

    @property
    def model_name(self) -> str:
        """The model's name in the catalog, or "custom"."""
        named = (name for name, known in catalog.MODELS.items() if all(self[f"model.{k}"] == v for k, v in known))
        return next(named, "custom")

    def part(self, name: str) -> dict[str, Any]:
        """The fields of one part of the spec, without the part's name."""
        return {field.split(".")[1]: value for field, value in self.values.items() if field.startswith(name + ".")}

    def model(self) -> ModelSpec:
        """Raises `RequestError` if the sizes do not go together."""
        return ModelSpec(**self.part("model"))

    def layout(self) -> LayoutSpec:
        """Raises `RequestError` if the split is not a list of numbers."""
        text = self["layout.split"].strip()
        try:
            split = LayoutSpec.split_of(text)
        except ValueError:
            raise RequestError(sentence("split {text!r} is not a list of whole numbers such as 3,3,2", text=text)) from None
        return LayoutSpec(**self.part("layout") | {"split": split})

    def workload(self, texts: Texts) -> WorkloadSpec:
        """Raises `RequestError` if the text is not on this machine."""
        name = self["workload.text"]
        path = texts.path(name) if name else None
        if name and path is None:
            raise RequestError(
                sentence("the text {name} is not on this machine; upload it again, or train on the built-in text", name=name)
            )
        return WorkloadSpec(**self.part("workload") | {"text": str(path) if path else None})

    def generate(self) -> GenerateSpec:
        return GenerateSpec(**self.part("generate"))


# Functions that make a part of a spec and can fail, by the field to change first.
_MAKERS: dict[str, Callable[[Choice, Texts], Any]] = {
    "model.heads": lambda choice, texts: choice.model(),
    "layout.split": lambda choice, texts: choice.layout(),
    "workload.text": lambda choice, texts: choice.workload(texts),
    "generate.prompt": lambda choice, texts: choice.generate(),
}


@dataclass(frozen=True)
class Verdict:
    """The result of reading a choice: a spec, or the problems.

    A spec of any size can be predicted. `refused` says why this machine cannot run it; it is empty if it can.
    """

    spec: RunSpec | None
    problems: tuple[Problem, ...] = ()
    refused: tuple[Problem, ...] = ()

    @property
    def runnable(self) -> RunSpec | None:
        return None if self.refused else self.spec


def read(choice: Choice, texts: Texts, active: Sequence[RunSpec] = ()) -> Verdict:
    """The spec, or all problems with the changes that would solve them. `active`: runs that will have ended before it starts."""
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
    return Verdict(spec, refused=_refused(choice, spec, texts, active))


def spec_of(choice: Choice, texts: Texts) -> RunSpec:
    """The spec. Raises `RequestError` with the first problem."""
    verdict = read(choice, texts)
    if verdict.spec is None:
        raise RequestError(verdict.problems[0].sentence)
    return verdict.spec


def _refused(choice: Choice, spec: RunSpec, texts: Texts, active: Sequence[RunSpec]) -> tuple[Problem, ...]:
    """Why this machine cannot run a valid spec. The queue checks that again when it is submitted."""
    if choice.ranks > limits.MOST_RANKS:
        refusal = sentence(
            "{product} = {ranks} ranks; one machine runs at most {most}; the prediction is not affected",
            product=choice.mesh.product,
            ranks=choice.ranks,
            most=limits.MOST_RANKS,
        )
        smaller = (fix for fix in _fewer_ranks(choice) if not _problems(choice.with_changes({fix.field: fix.value}), texts))
        return (Problem("layout.dp", refusal, tuple(islice(smaller, 4))),)
    try:
        limits.check(spec, active)
    except RequestError as error:
        return (Problem("model.layers", error.sentence),)
    return ()


def _problems(choice: Choice, texts: Texts) -> list[Problem]:
    found = _too_small(choice)
    if found:
        return found
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


def _too_small(choice: Choice) -> list[Problem]:
    """The numbers of which there is none: 0 microbatches."""
    return [
        Problem(
            field,
            sentence(
                "{field}={value} is not possible; the least is {least}", field=field.split(".")[1], value=choice[field], least=1
            ),
            (Fix(field, 1),),
        )
        for field in COUNTS
        if choice[field] < 1
    ]


def _fixes(choice: Choice, field: str, choices: tuple[int, ...]) -> tuple[Fix, ...]:
    if field == "model.heads":  # of the model itself: heads must divide the width
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
    """For each axis, the largest degree that is small enough. The smallest change is first."""
    fixes = []
    for field in (f"layout.{axis}" for axis in AXES_AS_WRITTEN):
        room = limits.MOST_RANKS * choice[field] // choice.ranks
        fixes += [Fix(field, degree) for degree in range(room, 0, -1)]
    return tuple(sorted(fixes, key=lambda f: choice[f.field] / f.value))


def _helps(choice: Choice, problem: Problem, fix: Fix, found: list[Problem], texts: Texts) -> bool:
    """Whether a change solves `problem` and causes no problem at a field that had none in `found`."""
    left = {p.field for p in _problems(choice.with_changes({fix.field: fix.value}), texts)}
    unseen = problem.field in _MAKERS  # while a part cannot be made, other problems are not found
    return problem.field not in left and (unseen or left <= {p.field for p in found})
