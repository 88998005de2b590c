"""Small runs that together cover every valid pair of choices: families, other parts, axes, schedules, levers and sizes.

Tests of parity, memory, traffic, spans and dry runs use them. Each runs once for all tests. They are chosen when tests are
collected, so this takes seconds at most; ledgers that predictions need are recorded by tests/predict/conftest.py.
"""

from __future__ import annotations

import random
from collections.abc import Hashable, Iterable, Mapping
from functools import cache
from itertools import combinations
from typing import Any, TypeVar

import numpy as np

from engine import catalog
from engine.families import FAMILIES
from engine.ledger.keep import Key
from engine.ledger.layout import needs_of
from engine.optimizer import OPTIMIZERS
from engine.schedule import SCHEDULES
from engine.spec import SCHEDULE_FACTS, LayoutSpec, ModelSpec, RequestError, RunSpec, WorkloadSpec

Case = TypeVar("Case", bound=Hashable)

CANDIDATES = 4_000  # enough to have every valid pair
MOST_RANKS = 8

# Parts that no family has, by a model that has them. Their ledgers are not shipped, and so there are few.
PARTS: dict[str, dict[str, Any]] = {
    "family's": {},
    "gemma's": {"placement": "both", "qk_norm": "head", "inner": "geglu", "scaled_embedding": True},
    "olmo's": {"placement": "output", "qk_norm": "full"},
    "falcon's": {"placement": "pre", "parallel": "one_norm", "attention_bias": "qkv", "inner": "relu2"},
    "mistral's": {"position": "rotary", "rotary_width": 8, "kv_heads": 1, "window": 9, "global_every": 3}
    | {"rotary_local_base": 100},
    "bloom's": {"position": "alibi", "embedding_norm": True, "kv_heads": 2},
    "opt's": {"position": "learned", "spare_positions": 2, "vocab_multiple": 48},
}
CHOICES: dict[str, list[Any]] = {
    "family": list(FAMILIES),
    "parts": list(PARTS),
    "schedule": list(SCHEDULES),
    "zero": [0, 1, 2, 3],
    "pp": [1, 2, 3, 4],
    "dp": [1, 2, 3],  # 3 does not divide a bucket
    "tp": [1, 2, 4],
    "split": ["even", "lopsided", "empty first", "empty last", "empty ends"],
    "microbatches": [1, 3, 6],
    "microbatch_size": [1, 2],
    "loss_chunk": [0, 5, 16],  # automatic is whole; chunks with a smaller last one; equal chunks
    "odd_vocabulary": [False, True],  # which tp does not divide
    "recompute": ["none", "core_attn", "mlp_act", "layernorm+mlp_act", "full"],
    "numbers": ["fp32", "bf16", "bf16 throughout", "bf16 optimizer", "bf16 optimizer, fp32 gradients"],
    "attention": ["fused", "written"],
    "optimizer": [*OPTIMIZERS, "momentum"],
    "sequence_parallel": [False, True],
}
LAYERS = {1: 4, 2: 4, 3: 6, 4: 5}  # by pp: at least one for each chunk
SPLITS: dict[int, dict[str, tuple[int, ...]]] = {  # layers of each stage
    2: {"lopsided": (1, 3), "empty first": (0, 4), "empty last": (4, 0)},
    3: {"lopsided": (1, 3, 2), "empty first": (0, 3, 3), "empty last": (3, 3, 0), "empty ends": (0, 6, 0)},
    4: {"lopsided": (1, 1, 1, 2), "empty first": (0, 2, 2, 1), "empty last": (1, 3, 1, 0), "empty ends": (0, 3, 2, 0)},
}


def spec_of(choice: Mapping[str, Any]) -> RunSpec:
    """The spec of some choices. Raises `RequestError` if they are not a valid combination."""

    def named(*names: str) -> tuple[tuple[str, Any], ...]:
        return tuple((name, choice[name]) for name in names)

    return RunSpec(
        model=_model(choice["family"], choice["parts"], choice["pp"], choice["odd_vocabulary"]),
        layout=_layout(choice["split"], *named("dp", "tp", "pp", "zero", "recompute", "sequence_parallel", "schedule")),
        workload=_workload(
            choice["numbers"], choice["optimizer"], *named("microbatches", "microbatch_size", "attention", "loss_chunk")
        ),
        parity=True,
    )


# Checking a spec takes most of the time, and random choices have few different parts.


@cache
def _model(family: str, parts: str, pp: int, odd_vocabulary: bool) -> ModelSpec:
    tiny = catalog.model(f"{family}-tiny")
    sizes = {"layers": LAYERS[pp], "seq": 32, "vocab": tiny.vocab + odd_vocabulary}
    return ModelSpec.model_validate(tiny.model_dump() | sizes | PARTS[parts])


@cache
def _layout(split: str, *fields: tuple[str, Any]) -> LayoutSpec:
    named = dict(fields)
    layers = () if split == "even" else SPLITS[named["pp"]][split]
    return LayoutSpec(**named, split=layers, chunks=SCHEDULE_FACTS[named["schedule"]].least_chunks)


@cache
def _workload(numbers: str, optimizer: str, *fields: tuple[str, Any]) -> WorkloadSpec:
    return WorkloadSpec(
        **dict(fields),
        steps=2,
        precision="fp32" if numbers == "fp32" else "bf16",
        accumulate="bf16" if numbers in ("bf16 throughout", "bf16 optimizer") else "fp32",
        bf16_optimizer="optimizer" in numbers,
        optimizer="sgd" if optimizer == "momentum" else optimizer,
        momentum=0.9 if optimizer == "momentum" else 0.0,
    )


@cache
def candidates(seed: int = 0) -> dict[RunSpec, dict[str, Any]]:
    """Random specs, and the choices that made them. Do not change them."""
    draw = random.Random(seed)
    found: dict[RunSpec, dict[str, Any]] = {}
    while len(found) < CANDIDATES:
        choice = {name: draw.choice(values) for name, values in CHOICES.items()}
        choice["zero"] *= choice["dp"] > 1  # otherwise few combinations would be valid
        choice["loss_chunk"] *= choice["family"] != "xlnet"  # those ledgers are not shipped
        choice["sequence_parallel"] &= choice["tp"] > 1
        splits = ("even", *SPLITS.get(choice["pp"], ()))
        if choice["dp"] * choice["tp"] * choice["pp"] > MOST_RANKS or choice["split"] not in splits:
            continue
        try:
            found[spec_of(choice)] = choice
        except RequestError:
            continue
    return found


def few(having: Mapping[Case, Iterable[Hashable]], cost: Mapping[Case, float]) -> tuple[Case, ...]:
    """Cases that together have all that any has. A greedy cover: each time the case with most that is missing.

    A case of twice the cost is preferred if it has a quarter more.
    """
    cases = list(having)
    numbers: dict[Hashable, int] = {}
    has = [[numbers.setdefault(one, len(numbers)) for one in having[case]] for case in cases]
    table = np.zeros((len(cases), len(numbers)), dtype=np.float32)  # (cases, what they have)
    for row, its in zip(table, has, strict=True):
        row[its] = 1
    costs = np.array([cost[case] for case in cases])
    missing, chosen = np.ones(len(numbers), dtype=np.float32), []
    while missing.any():
        scores = table @ missing / costs**0.3
        best = min(np.flatnonzero(scores >= scores.max() * (1 - 1e-9)), key=lambda case: costs[case])
        chosen.append(cases[best])
        missing[has[best]] = 0
    return tuple(chosen)


@cache
def covering() -> tuple[RunSpec, ...]:
    """The cases. They are always the same."""
    drawn = candidates()
    return few({spec: combinations(choice.items(), 2) for spec, choice in drawn.items()}, {spec: _cost(spec) for spec in drawn})


@cache
def each_choice() -> tuple[RunSpec, ...]:
    """Some of them, which together have every single choice, and every family with split backward and without."""
    drawn = candidates()
    having = {spec: {*drawn[spec].items(), ("splits", drawn[spec]["family"], spec.layout.facts.splits)} for spec in covering()}
    return few(having, {spec: _cost(spec) for spec in covering()})


def ledgers_of(spec: RunSpec) -> set[Key]:
    """The keys of the ledgers that predictions of a training need."""
    return needs_of(spec.model, spec.layout, spec.workload)


def _cost(spec: RunSpec) -> float:
    """The approximate time of a run and a dry run: processes to start, and passes of layers with their collectives."""
    layout = spec.layout
    return layout.ranks * (8 + spec.workload.microbatches * spec.model.layers / layout.pp * layout.tp)


def title(spec: RunSpec) -> str:
    """The values that distinguish a spec from others, as the id of a test."""
    layout, workload = spec.layout, spec.workload
    numbers = workload.precision + "-acc" * (workload.accumulate == "bf16") + "-opt" * workload.bf16_optimizer
    levers = f"zero{layout.zero}-{'sp-' if layout.sequence_parallel else ''}{layout.recompute}-{spec.attention}"
    split = "".join(f"-{n}" for n in layout.split)
    batch = f"{workload.microbatches}x{workload.microbatch_size}" + (f"-c{workload.loss_chunk}" if workload.loss_chunk else "")
    optimizer = f"{workload.optimizer}{workload.momentum:g}"
    parts = "".join(f"-{value}" for _, value in spec.model.chosen_parts)
    return f"{spec.model.family}{parts}-{layout.code}{split}-{layout.schedule}-{levers}-{numbers}-{optimizer}-{batch}"
