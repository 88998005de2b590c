"""Random specs that this machine can run: every family, schedule and lever, odd sizes included."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

from engine.families import FAMILIES
from engine.grid import RECOMPUTES
from engine.launch import limits
from engine.optimizer import OPTIMIZERS
from engine.schedule import SCHEDULES
from engine.spec import MODEL_PARTS, SCHEDULE_FACTS, LayoutSpec, ModelSpec, RequestError, RunSpec, WorkloadSpec, names_in

MOST_RANKS = 8
_CHOSEN = 0.15  # how often a part of the model is chosen apart from its family
_DAY_S = 86_400.0  # the time limit of a run: a busy machine may be slow


def specs(seed: int) -> Iterator[RunSpec]:
    """An endless sequence of specs. The same seed gives the same specs."""
    draw = random.Random(seed)
    while True:
        try:
            spec = _spec(draw)
            limits.check(spec)
        except RequestError:  # an invalid combination: draw again
            continue
        if spec.layout.ranks <= MOST_RANKS:
            yield spec


def _values(part: str) -> list[Any]:
    """The values of a part of the model."""
    names = names_in(ModelSpec.model_fields[part].annotation)
    return [name == "true" for name in names] if set(names) == {"true", "false"} else list(names)


def _spec(draw: random.Random) -> RunSpec:
    heads = draw.choice((2, 4, 6, 8))
    family = draw.choice(list(FAMILIES))
    model: dict[str, Any] = {
        "family": family,
        "layers": draw.randint(1, 8),
        "heads": heads,
        "hidden": heads * draw.choice((8, 16, 32)),
        "vocab": draw.randint(257, 1200),
        "seq": draw.randint(4, 40) * 4,
        "ffn": draw.choice((0, 0, 96, 240)),
    }
    if family != "xlnet":
        model["kv_heads"] = draw.choice((0, 0, 1, 2))
    model |= {part: draw.choice(_values(part)) for part in MODEL_PARTS if draw.random() < _CHOSEN}
    numbers = {"rotary_width": 4, "rotary_base": 10_000, "spare_positions": 2, "window": 11, "global_every": draw.choice((2, 3))}
    numbers |= {"rotary_local_base": 100, "vocab_multiple": 64}
    model |= {number: value for number, value in numbers.items() if draw.random() < _CHOSEN}
    name = draw.choice(SCHEDULES)
    dp, tp, pp = (draw.choice((1, 1, 2, 2, 3, 4)) for _ in range(3))
    zero = draw.choice((0, 1, 2, 3)) if dp > 1 else 0
    recompute = draw.choice(("none", "full", *RECOMPUTES))
    layout = LayoutSpec(
        dp=dp,
        tp=tp,
        pp=pp,
        schedule=name,
        chunks=SCHEDULE_FACTS[name].chunks or draw.choice((2, 3)),
        zero=zero,
        zero_replicas=draw.choice((1, 2)) if zero and dp == 4 else 1,
        sequence_parallel=tp > 1 and draw.random() < 0.5,
        recompute=recompute,
        **(draw.choice(({}, {"recompute_layers": draw.randint(1, 3)}, {"recompute_every": 2})) if recompute == "full" else {}),
    )
    precision = draw.choice(("fp32", "bf16"))
    optimizer = draw.choice(("adamw", *OPTIMIZERS))
    workload = WorkloadSpec(
        steps=2,
        microbatches=draw.randint(1, 8),
        microbatch_size=draw.randint(1, 3),
        precision=precision,
        accumulate=draw.choice(("fp32", "bf16")) if precision == "bf16" else "fp32",
        bf16_optimizer=precision == "bf16" and draw.random() < 0.3,
        optimizer=optimizer,
        momentum=draw.choice((0.0, 0.9)) if optimizer == "sgd" else 0.0,
        attention=draw.choice(("fused", "fused", "written")),
        loss_chunk=draw.choice((0, draw.randint(2, 60))),
        seed=draw.randrange(1000),
        time_limit=_DAY_S,
    )
    return RunSpec(model=ModelSpec(**model), layout=layout, workload=workload)
