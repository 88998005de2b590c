"""Published figures, and ours for the same: what comes of formulas exactly, what was measured or simulated with its error.

Nothing is fitted to a row: one setting, the planner's default, serves every table. What differs from the default are facts of
the systems measured: Megatron-LM cut messages between stages over tp; Llama 3 was trained with fused attention.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from engine.catalog import model, name_of
from engine.devices import device
from engine.predict.durations import textbook
from engine.predict.grid import Grid
from engine.predict.papers.accounting import accounting, zero_states
from engine.predict.speed.cost import model_flops, recomputed_flops
from engine.predict.speed.pace import simulated
from engine.predict.speed.rates import Assumptions
from engine.predict.timeline import simulate
from engine.schedule import plan
from engine.spec import LayoutSpec, ModelSpec, RunSpec, WorkloadSpec, sentence

Quantity = Literal["memory", "states", "bubble", "textbook bubble", "speed"]
# What each is in, as tables write it. A paper's GB are 10⁹ bytes.
UNITS: dict[Quantity, str] = {"memory": "GiB", "states": "GB", "bubble": "%", "textbook bubble": "%", "speed": "TFLOP/s"}

KORTHIKANTI = "Korthikanti et al. 2022, Reducing Activation Recomputation in Large Transformer Models, figures 1 and 7"
RAJBHANDARI = "Rajbhandari et al. 2020, ZeRO, table 1"
QI = "Qi et al. 2024, Zero Bubble Pipeline Parallelism, table 5"
NARAYANAN = "Narayanan et al. 2021, Efficient Large-Scale Language Model Training on GPU Clusters Using Megatron-LM, table 1"
GRATTAFIORI = "Llama team 2024, The Llama 3 Herd of Models, table 4"

_MIXED: Any = {"precision": "bf16", "accumulate": "fp32"}
# Name, layers, hidden, heads, tp, pp, chunks, microbatch size; GiB of states, of activations, and of activations with sequence
# parallelism and selective recompute.
_ACTIVATIONS = (
    ("22 B", 48, 6144, 64, 8, 1, 1, 4, 45.5625, 59.25, 9.5625),
    ("175 B", 96, 12288, 96, 8, 8, 3, 1, 45.5625, 66.84375, 12.3515625),
)
# With dp = 64: billions of parameters; GB with ZeRO 1, 2, 3.
_ZERO = ((7.5, 31.4, 16.6, 1.88), (128.0, 536.0, 284.0, 32.0))
# Bubbles of 1F1B, interleaved 1F1B and ZB-1P as shares of the total, computed from profiled times. Billions of parameters,
# stages, microbatches; and layers, hidden, heads, microbatch size.
_BUBBLES = (
    (1.5, 8, 24, 22, 2304, 24, 6, 0.2431, 0.1055, 0.1585),
    (14.6, 16, 48, 46, 5120, 40, 1, 0.2552, 0.1104, 0.1397),
)
# Billions of parameters, layers, hidden, heads, tp, pp, GPUs, global batch, microbatch size, TFLOP/s a GPU.
_MEGATRON = (
    (1.7, 24, 2304, 24, 1, 1, 32, 512, 16, 137),
    (3.6, 30, 3072, 32, 2, 1, 64, 512, 16, 138),
    (7.5, 36, 4096, 32, 4, 1, 128, 512, 16, 142),
    (18.4, 40, 6144, 48, 8, 1, 256, 1024, 8, 135),
    (39.1, 48, 8192, 64, 8, 2, 512, 1536, 4, 138),
    (76.1, 60, 10240, 80, 8, 4, 1024, 1792, 2, 140),
    (145.6, 80, 12288, 96, 8, 8, 1536, 2304, 2, 148),
)
# tp, pp, dp, sequences of a step for each replica, TFLOP/s a GPU.
_LLAMA = ((8, 16, 64, 32, 430), (8, 16, 128, 16, 400))


@dataclass(frozen=True)
class Reference:
    """One published figure and ours for the same, both in `UNITS[quantity]`.

    `model` is the catalog's name where the shape has one, and the paper's size otherwise; `device` is empty where none matters.
    `exact`: a formula of the paper's, which must come out the same; otherwise `ours` is a prediction of what was measured.
    """

    source: str
    model: str
    layout: str
    quantity: Quantity
    published: float
    ours: float
    device: str = ""
    exact: bool = False

    @property
    def error(self) -> float:
        """Signed, relative to what was published."""
        return self.ours / self.published - 1


def references(assumed: Assumptions | None = None) -> list[Reference]:
    """All of them, paper by paper; what depends on the hardware as `assumed` has it."""
    assumed = assumed or Assumptions()
    return [*_activations(), *_zero(), *_megatron(assumed), *_llama(assumed), *_bubbles(assumed)]


def _activations() -> Iterator[Reference]:
    for size, layers, hidden, heads, tp, pp, chunks, microbatch, states, plain, both in _ACTIVATIONS:
        shape = ModelSpec(layers=layers, hidden=hidden, heads=heads, seq=2048, vocab=51200)
        layout = {"tp": tp, "pp": pp, "chunks": chunks, "schedule": "interleaved" if chunks > 1 else "1f1b"}
        workload = WorkloadSpec(microbatches=8 * pp, microbatch_size=microbatch)
        name = "gpt3-175b" if size == "175 B" else size
        mesh = f"tp{tp}.pp{pp}"
        with_both = sentence("{layout}, sequence parallel, selective recompute", layout=mesh)
        for described, published, levers in (
            (mesh, plain, {}),
            (with_both, both, {"sequence_parallel": True, "recompute": "selective"}),
        ):
            spec = RunSpec(model=shape, layout=LayoutSpec(**layout | levers), workload=workload)
            ours, _ = accounting("korthikanti2022")(shape, workload, Grid.of([spec]))
            yield Reference(KORTHIKANTI, name, described, "memory", states + published, float(ours[0]) / 2**30, exact=True)


def _zero() -> Iterator[Reference]:
    for billions, *published in _ZERO:
        for zero, theirs in enumerate(published, start=1):
            ours = float(zero_states(billions * 1e9, 64, zero)) / 1e9
            yield Reference(RAJBHANDARI, f"{billions:g} B", f"dp64, ZeRO {zero}", "states", theirs, ours, exact=True)


def _bubbles(assumed: Assumptions) -> Iterator[Reference]:
    """Sequences of 1,024 on A100; the first and the last stage have one layer less than the others, interleaved a layer a chunk.

    From the device's figures, and from unit times. ZB-1P is found by a solver for the times at hand; beside it stands ZB-H1,
    which holds as much.
    """
    for billions, pp, microbatches, layers, hidden, heads, size, *published in _BUBBLES:
        shape = ModelSpec(layers=layers, hidden=hidden, heads=heads, seq=1024, vocab=50257)
        each = (layers + 2) // pp
        stages, chunks = (each - 1, *(each,) * (pp - 2), each - 1), (0, *(1,) * layers, 0)
        schedules: tuple[tuple[Any, int, Any], ...] = (("1f1b", 1, stages), ("interleaved", each, chunks), ("zb-h1", 1, stages))
        for (name, v, split), theirs in zip(schedules, published, strict=True):
            layout = LayoutSpec(pp=pp, schedule=name, chunks=v, split=split)
            workload = WorkloadSpec(microbatches=microbatches, microbatch_size=size, **_MIXED)
            gpu = "a100-80gb"
            _, ours = simulated(RunSpec(model=shape, layout=layout, workload=workload), device(gpu), assumed)
            units = simulate(plan(layout, microbatches), textbook(layout)).bubble
            told = {"interleaved": f"interleaved × {v}", "zb-h1": "zb-h1 for their ZB-1P"}.get(name, name)
            described = f"pp{pp}, {told}, m={microbatches}"
            yield Reference(QI, f"{billions:g} B", described, "bubble", 100 * theirs, 100 * ours, gpu)
            yield Reference(QI, f"{billions:g} B", described, "textbook bubble", 100 * theirs, 100 * units)


def _megatron(assumed: Assumptions) -> Iterator[Reference]:
    """Everything computed again, interleaved with messages cut over tp where there is a pipeline (sections 3.5, 4.1 and 5.1), and
    what is computed again counted. The paper does not say how many chunks: the fewest that divide a stage's layers.
    """
    gpu, how = "a100-80gb", assumed.model_copy(update={"split_messages": True})
    for billions, layers, hidden, heads, tp, pp, gpus, batch, size, measured in _MEGATRON:
        shape = ModelSpec(layers=layers, hidden=hidden, heads=heads, seq=2048, vocab=51200)
        each = layers // pp
        chunks = next(v for v in range(2, each + 1) if each % v == 0) if pp > 1 else 1
        dp = gpus // (tp * pp)
        layout = LayoutSpec(dp=dp, tp=tp, pp=pp, chunks=chunks, schedule="interleaved" if pp > 1 else "1f1b", recompute="full")
        workload = WorkloadSpec(microbatches=batch // dp // size, microbatch_size=size, **_MIXED)
        step, _ = simulated(RunSpec(model=shape, layout=layout, workload=workload), device(gpu), how)
        flops = model_flops(shape) + recomputed_flops(shape, "full")
        ours = flops * batch / gpus / step / 1e12
        yield Reference(NARAYANAN, f"{billions:g} B", layout.code, "speed", measured, ours, gpu)


def _llama(assumed: Assumptions) -> Iterator[Reference]:
    """Sequences of 8,192, nothing computed again, optimizer and gradients sharded and reduced once a step, one layer a chunk with
    none beside the embedding and the head (section 3.3.2).
    """
    gpu, how = "h100-80gb", assumed.model_copy(update={"fused_attention": True})
    shape = model("llama3-405b")
    for tp, pp, dp, sequences, measured in _LLAMA:
        chunks = (shape.layers + 2) // pp
        split = (0, *(1,) * shape.layers, 0)
        layout = LayoutSpec(
            dp=dp, tp=tp, pp=pp, chunks=chunks, schedule="interleaved", split=split, zero=1, sequence_parallel=True
        )
        workload = WorkloadSpec(microbatches=sequences, microbatch_size=1, **_MIXED)
        step, _ = simulated(RunSpec(model=shape, layout=layout, workload=workload), device(gpu), how)
        ours = model_flops(shape) * sequences * dp / layout.ranks / step / 1e12
        yield Reference(GRATTAFIORI, name_of(shape), layout.code, "speed", measured, ours, gpu)
