"""What stands side by side: layouts as the formulas predict them, and saved runs as they were measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from engine import catalog
from engine.predict.run import predict
from engine.spec import LayoutSpec, RequestError, RunSpec, sentence
from engine.tables import RunResult
from pages.shared import links
from pages.shared.choice import Choice, spec_of
from pages.shared.saved import load
from pages.shared.service import Service

MOST = 4  # more do not fit side by side
RUN = "run:"  # what an item of the link begins with that is a saved run's name; any other is a choice's code
BETWEEN = "*"  # between the items of a link; in no name and no code


@dataclass(frozen=True)
class Column:
    """`item` is what stands for it in the link."""

    item: str
    result: RunResult
    measured: bool

    @property
    def spec(self) -> RunSpec:
        return self.result.spec

    @property
    def model(self) -> str:
        return catalog.name_of(self.spec.model)


@dataclass(frozen=True)
class Missing:
    """An item of the link that cannot be shown, and why."""

    item: str
    sentence: str


def items_of(link: str) -> list[str]:
    """The items in a link's parameter, each once, at most as many as fit."""
    return list(dict.fromkeys(filter(None, link.split(BETWEEN))))[:MOST]


def read(items: Sequence[str], service: Service) -> list[Column | Missing]:
    return [_read(item, service) for item in items]


def _read(item: str, service: Service) -> Column | Missing:
    try:
        if item.startswith(RUN):
            folder = service.saved(item.removeprefix(RUN))
            if folder is None:
                raise RequestError(sentence("this run is not here: it was deleted, or saved elsewhere"))
            return Column(item, load(folder), measured=True)
        return Column(item, predict(spec_of(links.decode(item), service.texts)), measured=False)
    except (RequestError, links.LinkError) as error:
        return Missing(item, error.sentence)


def default_items() -> list[str]:
    """Two layouts of one model that differ in the schedule alone."""
    one = Choice.default()
    return [links.encode(one), links.encode(one.having({"layout.schedule": "gpipe"}))]


def item_of(spec: RunSpec, service: Service) -> str:
    return links.encode(Choice.of(spec, service.texts))


def title(column: Column, others: Sequence[Column]) -> str:
    """The layout, and whatever else tells the column from the others."""
    spec = column.spec
    parts = [spec.layout.code]
    if len({c.model for c in others}) > 1:
        parts.insert(0, column.model)
    parts += [words for words, telling in _differing(spec, [c.spec for c in others]) if telling]
    return " · ".join(parts)


def _differing(spec: RunSpec, all_specs: Sequence[RunSpec]) -> list[tuple[str, bool]]:
    layout, workload = spec.layout, spec.workload

    def differ(part: str, field: str) -> bool:
        return len({getattr(getattr(one, part), field) for one in all_specs}) > 1

    return [
        (layout.schedule, differ("layout", "schedule")),
        (f"chunks {layout.chunks}", differ("layout", "chunks")),
        (f"ZeRO {layout.zero}", differ("layout", "zero")),
        ("SP" if layout.sequence_parallel else "no SP", differ("layout", "sequence_parallel")),
        (f"recompute {layout.recompute}", differ("layout", "recompute")),
        (f"split {split_of(layout)}", differ("layout", "split")),
        (workload.precision, differ("workload", "precision")),
        (workload.optimizer, differ("workload", "optimizer")),
        (
            f"{workload.microbatches}×{workload.microbatch_size}",
            differ("workload", "microbatches") or differ("workload", "microbatch_size"),
        ),
    ]


def split_of(layout: LayoutSpec) -> str:
    return ",".join(map(str, layout.split)) or "even"
