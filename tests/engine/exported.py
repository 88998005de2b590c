"""Specs that are exported in tests: the best plans of several models, and random ones."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

from engine import catalog
from engine.devices import device
from engine.launch.recording.client import with_ledgers
from engine.planner.search import search
from engine.spec import RunSpec
from tests.predict.random_specs import random_specs

# Models of every family that the planner is asked for, with devices and sequences in a step.
# xlnet-large has so few that no microbatch has its loss in chunks: those ledgers of its family are not shipped.
ASKED = {"gpt3-175b": (512, 1024), "gpt3-13b": (64, 128), "llama3-8b": (16, 64), "bert-large": (8, 64), "xlnet-large": (8, 8)}


@cache
def best_plans(name: str) -> tuple[RunSpec, ...]:
    """The ten best plans of a model."""
    ranks, batch = ASKED[name]
    plan = with_ledgers(lambda: search(catalog.model(name), ranks, device("h100-80gb"), batch))
    assert plan.feasible >= 10
    return tuple(plan.spec(row) for row in range(10))


def drawn() -> Iterator[RunSpec]:
    """Random specs of every family, schedule and lever, with every optimizer."""
    for number, spec in enumerate(random_specs(120)):
        optimizer = ("adamw", "sgd", "lion")[number % 3]
        yield spec.model_copy(update={"workload": spec.workload.model_copy(update={"optimizer": optimizer})})
