"""Random specs for tests: any part by itself, and whole requests that fit together."""

from __future__ import annotations

from itertools import pairwise
from math import gcd
from typing import Any, TypeVar

from hypothesis import strategies as st

from engine.optimizer import OPTIMIZERS
from engine.spec import FaultSpec, LayoutSpec, ModelSpec, RunSpec, Spec, WorkloadSpec

S = TypeVar("S", bound=Spec)


@st.composite
def models(draw: st.DrawFn) -> ModelSpec:
    """Any valid model, by itself."""
    heads = draw(st.integers(1, 48))
    return ModelSpec(
        layers=draw(st.integers(1, 24)),
        hidden=heads * draw(st.integers(1, 32)),
        heads=heads,
        vocab=draw(st.integers(1, 1000)),
        seq=draw(st.integers(1, 1000)),
        ffn=draw(st.one_of(st.just(0), st.integers(1, 500))),
    )


@st.composite
def layouts(draw: st.DrawFn) -> LayoutSpec:
    """Any valid layout, by itself. It need not fit a model."""
    pp = draw(st.integers(1, 12))
    split = draw(st.one_of(st.just([]), st.lists(st.integers(-1, 8), max_size=pp + 1)))
    return LayoutSpec(
        dp=draw(st.integers(1, 8)),
        tp=draw(st.integers(1, 48)),
        pp=pp,
        schedule=draw(st.sampled_from(["naive", "gpipe", "1f1b"])),
        split=tuple(split),
        zero=draw(st.integers(0, 3)),
        sequence_parallel=draw(st.booleans()),
        recompute=draw(st.sampled_from(["none", "core_attn", "layernorm+mlp_act", "full"])),
    )


workloads = st.builds(
    WorkloadSpec,
    steps=st.integers(1, 10_000),
    microbatches=st.integers(1, 1024),
    microbatch_size=st.integers(1, 4096),
    learning_rate=st.floats(0, 10, exclude_min=True),
    optimizer=st.sampled_from(list(OPTIMIZERS)),
    momentum=st.one_of(st.just(0.0), st.floats(0, 1, exclude_max=True)),
    precision=st.sampled_from(["fp32", "bf16"]),
    accumulate=st.sampled_from(["fp32", "bf16"]),
    seed=st.integers(0, 2**31 - 1),
    text=st.one_of(st.none(), st.text(min_size=1)),
    time_limit=st.floats(0, 86_400, exclude_min=True),
)


@st.composite
def runs(draw: st.DrawFn) -> RunSpec:
    """Any request that fits together. It is made to fit, because a filter would reject nearly all draws."""
    model, layout, workload = draw(models()), draw(layouts()), draw(workloads)
    both = gcd(model.heads, model.ffn_width)
    tp = draw(st.sampled_from([d for d in range(1, both + 1) if both % d == 0]))
    pp = draw(st.integers(1, model.layers))
    split: tuple[int, ...] = ()
    if draw(st.booleans()):
        cuts = sorted(draw(st.sets(st.integers(1, model.layers - 1), min_size=pp - 1, max_size=pp - 1))) if pp > 1 else []
        ends = [0, *cuts, model.layers]
        split = tuple(after - before for before, after in pairwise(ends))
    kind = draw(st.sampled_from(["", "raise", "exit", "kill", "hang"]))
    where = {"rank": draw(st.integers(0, layout.dp * tp * pp - 1)), "step": draw(st.integers(1, workload.steps))}
    return RunSpec(
        model=changed(model, vocab=draw(st.integers(256, 60_000))),
        layout=changed(
            layout,
            tp=tp,
            pp=pp,
            split=split,
            zero=layout.zero if layout.dp > 1 else 0,
            sequence_parallel=layout.sequence_parallel and tp > 1 and model.seq % tp == 0,
        ),
        workload=changed(
            workload,
            accumulate=workload.accumulate if workload.precision == "bf16" else "fp32",
            momentum=workload.momentum if workload.optimizer == "sgd" else 0.0,
        ),
        parity=draw(st.booleans()),
        fault=FaultSpec.model_validate({"kind": kind, **where}) if kind else None,
    )


def changed(part: S, **fields: Any) -> S:
    """The part with other values, validated again."""
    return type(part).model_validate(part.model_dump() | fields)
