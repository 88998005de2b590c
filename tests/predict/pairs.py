"""Small specs that together have every pair of choices that go together: of families, axes, schedules and levers."""

from __future__ import annotations

import random
from itertools import combinations
from typing import Any

from engine import catalog
from engine.families import FAMILIES
from engine.schedule import SCHEDULES
from engine.spec import V_SHAPED, LayoutSpec, RequestError, RunSpec, WorkloadSpec

CANDIDATES = 4_000  # enough that every pair that goes together is among them

CHOICES: dict[str, list[Any]] = {
    "family": list(FAMILIES),
    "schedule": list(SCHEDULES),
    "zero": [0, 1, 2, 3],
    "pp": [1, 2, 3],
    "dp": [1, 2],
    "tp": [1, 2],
    "recompute": ["none", "selective", "full"],
    "numbers": ["fp32", "bf16", "bf16 throughout"],
    "optimizer": ["adamw", "sgd", "momentum"],
    "sequence_parallel": [False, True],
}


def spec_of(choice: dict[str, Any]) -> RunSpec:
    """Raises `RequestError` where the choices do not go together."""
    name = choice["schedule"]
    model = catalog.model(f"{choice['family']}-tiny").model_copy(update={"layers": 6, "seq": 32, "decoder_layers": 0})
    layout = LayoutSpec(
        **{field: choice[field] for field in ("dp", "tp", "pp", "zero", "recompute", "sequence_parallel", "schedule")},
        chunks=2 if name in (*V_SHAPED, "interleaved") else 1,
    )
    workload = WorkloadSpec(
        steps=2,
        microbatches=2 * choice["pp"],
        microbatch_size=1,
        precision="fp32" if choice["numbers"] == "fp32" else "bf16",
        accumulate="bf16" if choice["numbers"] == "bf16 throughout" else "fp32",
        optimizer="adamw" if choice["optimizer"] == "adamw" else "sgd",
        momentum=0.9 if choice["optimizer"] == "momentum" else 0.0,
        time_limit=60.0,
    )
    return RunSpec(model=model, layout=layout, workload=workload)


def covering(seed: int = 0) -> list[RunSpec]:
    """As few as are found by taking, again and again, the candidate with the most pairs that no spec before it has."""
    draw = random.Random(seed)
    candidates: dict[RunSpec, set[tuple[Any, ...]]] = {}
    while len(candidates) < CANDIDATES:
        chosen = {name: draw.choice(values) for name, values in CHOICES.items()}
        chosen["zero"] *= chosen["dp"] > 1  # or few would go together
        chosen["sequence_parallel"] &= chosen["tp"] > 1
        try:
            candidates[spec_of(chosen)] = set(combinations(chosen.items(), 2))
        except RequestError:
            continue
    left = set().union(*candidates.values())
    picked = []
    while left:
        best = max(candidates, key=lambda spec: len(candidates[spec] & left))
        left -= candidates.pop(best)
        picked.append(best)
    return picked


def name(spec: RunSpec) -> str:
    """What tells a spec from the others."""
    layout, workload = spec.layout, spec.workload
    levers = f"zero{layout.zero}-{'sp-' if layout.sequence_parallel else ''}{layout.recompute}"
    numbers = workload.precision + ("-acc" if workload.accumulate == "bf16" else "")
    return f"{spec.model.family}-{layout.code}-{layout.schedule}-{levers}-{numbers}-{workload.optimizer}{workload.momentum:g}"
