"""The columns of the comparison: predicted layouts, and saved runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from engine import catalog
from engine.spec import RequestError, RunSpec, sentence
from engine.tables import RunResult
from pages.charts.names import attentions, loss_in_chunks, microbatches, recompute, schedule, zero_stage
from pages.charts.words import Words
from pages.shared import links
from pages.shared.beside import RUN
from pages.shared.choice import Choice, spec_of
from pages.shared.choice import read as read_choice
from pages.shared.predicted import predicted
from pages.shared.saved import load
from pages.shared.service import Service


@dataclass(frozen=True)
class Column:
    """`item`: its text in the link. `source`: the source of its tables."""

    item: str
    result: RunResult
    source: str

    @property
    def spec(self) -> RunSpec:
        return self.result.spec

    @property
    def saved(self) -> bool:
        return self.item.startswith(RUN)

    @property
    def measured(self) -> bool:
        return self.source == "measured"

    @property
    def model(self) -> str:
        return catalog.name_of(self.spec.model)


@dataclass(frozen=True)
class Missing:
    """An item of the link that cannot be shown, and the reason."""

    item: str
    sentence: str


def read(items: Sequence[str], service: Service) -> list[Column | Missing]:
    return [_read(item, service) for item in items]


def _read(item: str, service: Service) -> Column | Missing:
    try:
        if item.startswith(RUN):
            folder = service.saved(item.removeprefix(RUN))
            if folder is None:
                name = item.removeprefix(RUN)
                raise RequestError(
                    sentence("the run {name} is not here: it was deleted, renamed, or saved on another machine", name=name)
                )
            result = load(folder)
            return Column(item, result, str(result.tables["memory_peak"]["source"].iloc[0]))
        return Column(item, predicted(spec_of(links.decode(item), service.texts)), "formula")
    except (RequestError, links.LinkError) as error:
        return Missing(item, error.sentence)


def default_items() -> list[str]:
    """Two layouts of one model that differ only in the schedule."""
    one = Choice.default()
    return [links.encode(one), links.encode(one.with_changes({"layout.schedule": "gpipe"}))]


def sequences(spec: RunSpec) -> int:
    """Sequences in a step of all replicas."""
    return spec.layout.dp * spec.workload.microbatches * spec.workload.microbatch_size


def with_batch(spec: RunSpec, batch: int, service: Service) -> str | None:
    """The item of the same layout with `batch` sequences a step: other microbatches, and smaller ones only if they must be.

    None if there is no such layout.
    """
    each, left = divmod(batch, spec.layout.dp)
    if left or not each:
        return None
    choice = Choice.of(spec, service.texts)
    for size in range(min(spec.workload.microbatch_size, each), 0, -1):
        if each % size == 0:
            made = choice.with_changes({"workload.microbatch_size": size, "workload.microbatches": each // size})
            if read_choice(made, service.texts).spec is not None:
                return links.encode(made)
    return None


# ------------------------------------------------------------------------------------------------------------------ names


def title(column: Column, others: Sequence[Column], say: Words) -> str:
    """All differences between the column and the others, in one line."""
    parts = [column.spec.layout.code, *distinguishing(column, others, say)]
    if len({c.model for c in others}) > 1:
        parts.insert(0, column.model)
    return " · ".join(parts)


def distinguishing(column: Column, others: Sequence[Column], say: Words) -> list[str]:
    """The values that differ from other columns, except model and mesh."""
    specs = [other.spec for other in others]
    texts = [
        words(column.spec)
        for field, words in _fields(say).items()
        if len({getattr(getattr(spec, field.split(".")[0]), field.split(".")[1]) for spec in specs}) > 1
    ]
    if len(specs) == 1 and column.spec.layout.pp > 1:
        texts = [schedule(column.spec.layout.schedule, say)]
    return list(dict.fromkeys(texts))


def _fields(say: Words) -> dict[str, Callable[[RunSpec], str]]:
    """Field → function that gives its value in words."""

    def batch(spec: RunSpec) -> str:
        return microbatches(spec.workload.microbatches, spec.workload.microbatch_size, say)

    def order(spec: RunSpec) -> str:
        name = schedule(spec.layout.schedule, say)
        return f"{name} × {spec.layout.chunks}" if spec.layout.chunks > 1 else name

    def zero(spec: RunSpec) -> str:
        return zero_stage(spec.layout.zero, spec.layout.zero_replicas, say)

    def again(spec: RunSpec) -> str:
        layout = spec.layout
        what = recompute(layout.recompute, layout.recompute_layers, layout.recompute_every, say)
        return say("recompute {what}", what=what)

    def off_or_on(field: str, on: str, off: str) -> Callable[[RunSpec], str]:
        return lambda spec: on if _of(spec, field) else off

    return {
        "layout.schedule": order,
        "layout.chunks": order,
        "layout.zero": zero,
        "layout.zero_replicas": zero,
        "layout.sequence_parallel": off_or_on(
            "layout.sequence_parallel", say("sequence parallel"), say("without sequence parallel")
        ),
        "layout.recompute": again,
        "layout.recompute_layers": again,
        "layout.recompute_every": again,
        "layout.split": lambda spec: say("layers {split}", split=",".join(map(str, spec.layout.split)) or say("split evenly")),
        "workload.precision": lambda spec: spec.workload.precision,
        "workload.attention": lambda spec: say("{attention} attention", attention=attentions(say)[spec.attention]),
        "workload.optimizer": lambda spec: spec.workload.optimizer,
        "workload.bf16_optimizer": off_or_on("workload.bf16_optimizer", say("optimizer in bf16"), say("optimizer in fp32")),
        "workload.loss_chunk": lambda spec: loss_in_chunks(spec.workload.loss_chunk, say),
        "workload.microbatches": batch,
        "workload.microbatch_size": batch,
        "model.seq": lambda spec: say("sequences of {count} tokens", count=f"{spec.model.seq:,}"),
    }


def _of(spec: RunSpec, field: str) -> Any:
    part, name = field.split(".")
    return getattr(getattr(spec, part), name)
