"""The bubbles of Qi et al. 2024. The paper computes them from profiled times. Here they are computed from the same times, and
from the device's figures.

The paper gives each model one time for forward, one for each half of backward and one for a message. They hold for every stage:
the first and the last stage have one layer less than the others, to balance the embedding and the head. Its bubble is 1 − busy ÷
total, as ours.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from engine.devices import device
from engine.papers.reference import Reference
from engine.predict.speed.rates import Assumptions
from engine.predict.speed.step_time import durations
from engine.schedule import Flow, Kind
from engine.schedule.simulation import pipeline_simulation, simulate_all
from engine.schedule.timeline import Durations
from engine.spec import WHOLE_LOSS, LayoutSpec, ModelSpec, RunSpec, WorkloadSpec

QI = "Qi et al. 2024, Zero Bubble Pipeline Parallelism, table 5"
_GPU = "a100-80gb"


class _Model(NamedTuple):
    billions: float
    layers: int
    hidden: int
    heads: int
    microbatch: int
    pp: int


# Sequences of 1,024 tokens. For each number of microbatches: milliseconds of F, of B (here I), of W and of a message; bubbles of
# 1F1B, of interleaved 1F1B with one layer a chunk, and of ZB-1P, as shares of the total time.
_TABLE: dict[_Model, dict[int, tuple[float, ...]]] = {
    _Model(1.5, 22, 2304, 24, 6, 8): {
        24: (18.522, 18.086, 9.337, 0.601, 0.2431, 0.1055, 0.1585),
        32: (18.513, 18.086, 9.331, 0.626, 0.1985, 0.0818, 0.1242),
        64: (18.546, 18.097, 9.321, 0.762, 0.1240, 0.0443, 0.0674),
    },
    _Model(6.2, 30, 4096, 32, 3, 8): {
        24: (29.718, 29.444, 19.927, 0.527, 0.2347, 0.0808, 0.1323),
        32: (29.802, 29.428, 19.530, 0.577, 0.1898, 0.0628, 0.1045),
        64: (29.935, 29.621, 19.388, 0.535, 0.1091, 0.0320, 0.0554),
    },
    _Model(14.6, 46, 5120, 40, 1, 16): {
        48: (11.347, 11.248, 8.132, 0.377, 0.2552, 0.1104, 0.1397),
        64: (11.307, 11.254, 8.101, 0.379, 0.2082, 0.0852, 0.1088),
        128: (11.325, 11.308, 8.109, 0.378, 0.1251, 0.0445, 0.0576),
    },
    _Model(28.3, 62, 6144, 48, 1, 32): {
        96: (10.419, 10.207, 7.715, 0.408, 0.2646, 0.1493, 0.1421),
        128: (10.408, 10.204, 7.703, 0.408, 0.2168, 0.1164, 0.1106),
        256: (10.402, 10.248, 7.698, 0.460, 0.1352, 0.0624, 0.0594),
    },
}


def profiled(assumed: Assumptions) -> Iterator[Reference]:
    """The published bubbles. ZB-1P is the schedule that the paper's solver finds with the memory of 1F1B; at these times it is
    ZB-H1.
    """
    for model, by_count in _TABLE.items():
        chunks = (model.layers + 2) // model.pp
        ours = _device_times(model, assumed)
        for m, (forward, back, weights, message, *published) in by_count.items():
            schedules: tuple[tuple[Any, int], ...] = (("1f1b", 1), ("interleaved", chunks), ("zb-h1", 1))
            for (name, v), theirs in zip(schedules, published, strict=True):
                layout = LayoutSpec(pp=model.pp, schedule=name, chunks=v)
                shown = {"interleaved": f"interleaved × {v}", "zb-h1": "zb-h1 for their ZB-1P"}.get(name, name)
                size, described = f"{model.billions:g} B", f"pp{model.pp}, {shown}, m={m}"
                exact = name != "interleaved"  # the paper does not say when messages between its chunks are sent
                from_theirs = 100 * _bubble(layout, m, forward, back, weights, message)
                yield Reference(QI, size, described, "profiled bubble", 100 * theirs, from_theirs, exact=exact)
                yield Reference(QI, size, described, "bubble", 100 * theirs, 100 * _bubble(layout, m, *ours), _GPU)


def _bubble(layout: LayoutSpec, m: int, forward: float, back: float, weights: float, message: float) -> float:
    """The simulated bubble, with the same times for every stage. Each chunk of a stage takes an equal part of them."""
    parts: dict[Kind, float] = {"F": forward, "B": back + weights, "I": back, "W": weights}
    chunks = range(layout.pp * layout.chunks)
    flows: tuple[Flow, ...] = ("activation", "gradient")
    compute = {(kind, chunk): time / layout.chunks for kind, time in parts.items() for chunk in chunks}
    times = Durations(compute, {(flow, chunk): message for flow in flows for chunk in chunks})
    rounds = m // layout.pp  # pp divides every m of the table; from the fourth round on, all rounds take equally long
    runs = [(pipeline_simulation(layout.schedule, layout.pp, count * layout.pp, layout.chunks), times, False) for count in (3, 4)]
    third, fourth = (found.pipeline for found in simulate_all(runs))
    return 1 - m * (forward + back + weights) / (third + (rounds - 3) * (fourth - third))


def _device_times(model: _Model, assumed: Assumptions) -> tuple[float, float, float, float]:
    """Seconds of a middle stage by the device's figures: F, I, W and a message."""
    each = (model.layers + 2) // model.pp
    layout = LayoutSpec(pp=model.pp, split=(each - 1, *(each,) * (model.pp - 2), each - 1))
    shape = ModelSpec(layers=model.layers, hidden=model.hidden, heads=model.heads, seq=1024, vocab=50257)
    workload = WorkloadSpec(
        microbatches=1,
        microbatch_size=model.microbatch,
        precision="bf16",
        accumulate="fp32",
        attention="written",
        loss_chunk=WHOLE_LOSS,
    )
    times = durations(
        RunSpec(model=shape, layout=layout, workload=workload),
        device(_GPU),
        assumed.model_copy(update={"fused_accumulation": True}),
    )
    return times.compute["F", 1], times.compute["I", 1], times.compute["W", 1], times.messages["activation", 1]
