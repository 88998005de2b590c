"""Published figures beside the planner's: what comes of formulas exactly, what was measured with its error.

    python -m benchmarks.published [--assume matmul_efficiency=0.7 …]

Nothing is fitted to a row: one setting, the planner's default, serves every table. What differs from the default are facts of
the systems measured: Megatron-LM cut messages between stages over tp; Llama 3 was trained with fused attention.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Iterator
from typing import Any

from engine.catalog import model
from engine.command.output import print_table
from engine.command.search import assumptions
from engine.devices import device
from engine.predict.accounting import accounting, zero_states
from engine.predict.cost import model_flops, recomputed_flops
from engine.predict.durations import textbook
from engine.predict.grid import Grid
from engine.predict.pace import simulated
from engine.predict.rates import Assumptions
from engine.predict.timeline import simulate
from engine.schedule import plan
from engine.spec import LayoutSpec, ModelSpec, RunSpec, WorkloadSpec

_MIXED: Any = {"precision": "bf16", "accumulate": "fp32"}

# Korthikanti et al. 2022, figures 1 and 7: name, layers, hidden, heads, tp, pp, chunks, microbatch size; GiB of states, of
# activations, and of activations with sequence parallelism and selective recompute.
ACTIVATIONS = (
    ("22B", 48, 6144, 64, 8, 1, 1, 4, 45.5625, 59.25, 9.5625),
    ("175B", 96, 12288, 96, 8, 8, 3, 1, 45.5625, 66.84375, 12.3515625),
)
# Rajbhandari et al. 2020, table 1, dp = 64: billions of parameters; GB with ZeRO 1, 2, 3.
ZERO = ((7.5, 31.4, 16.6, 1.88), (128.0, 536.0, 284.0, 32.0))
# Qi et al. 2024, Zero Bubble Pipeline Parallelism, table 5: bubbles of 1F1B, interleaved 1F1B and ZB-1P as shares of the total,
# computed from profiled times. Billions of parameters, stages, microbatches; and layers, hidden, heads, microbatch size.
BUBBLES = (
    (1.5, 8, 24, 22, 2304, 24, 6, 0.2431, 0.1055, 0.1585),
    (14.6, 16, 48, 46, 5120, 40, 1, 0.2552, 0.1104, 0.1397),
)
# Narayanan et al. 2021, Efficient Large-Scale Language Model Training on GPU Clusters Using Megatron-LM (SC21), table 1:
# billions of parameters, layers, hidden, heads, tp, pp, GPUs, global batch, microbatch size, TFLOP/s a GPU.
MEGATRON = (
    (1.7, 24, 2304, 24, 1, 1, 32, 512, 16, 137),
    (3.6, 30, 3072, 32, 2, 1, 64, 512, 16, 138),
    (7.5, 36, 4096, 32, 4, 1, 128, 512, 16, 142),
    (18.4, 40, 6144, 48, 8, 1, 256, 1024, 8, 135),
    (39.1, 48, 8192, 64, 8, 2, 512, 1536, 4, 138),
    (76.1, 60, 10240, 80, 8, 4, 1024, 1792, 2, 140),
    (145.6, 80, 12288, 96, 8, 8, 1536, 2304, 2, 148),
)
# Llama team 2024, The Llama 3 Herd of Models, table 4: tp, pp, dp, sequences of a step for each replica, TFLOP/s a GPU.
LLAMA = ((8, 16, 64, 32, 430), (8, 16, 128, 16, 400))


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--assume", action="append", default=[], metavar="NAME=VALUE")
    assumed = assumptions(options.parse_args().assume)
    for title, rows in (
        ("Korthikanti et al. 2022, figures 1 and 7, GiB a device (formulas, exact)", _activations()),
        ("Rajbhandari et al. 2020, table 1, GB a device (formulas, exact)", _zero()),
        ("Qi et al. 2024, table 5, bubble as a share of total time (theirs from profiled times)", _bubbles(assumed)),
        ("Narayanan et al. 2021, table 1, TFLOP/s a GPU with what is computed again, A100 80 GB", _megatron(assumed)),
        ("Llama 3, table 4, TFLOP/s a GPU, H100 80 GB", _llama(assumed)),
    ):
        found = list(rows)
        print(f"\n{title}")
        print_table(found)
        errors = [abs(float(row["error %"])) for row in found if "error %" in row]
        if errors:
            print(f"median error {statistics.median(errors):.1f} %, largest {max(errors):.1f} %")
    print(f"\nassumed: {', '.join(f'{name}={value}' for name, value in assumed.model_dump().items())}")


def _activations() -> Iterator[dict[str, Any]]:
    for name, layers, hidden, heads, tp, pp, chunks, size, states, plain, both in ACTIVATIONS:
        shape = ModelSpec(layers=layers, hidden=hidden, heads=heads, seq=2048, vocab=51200)
        layout = {"tp": tp, "pp": pp, "chunks": chunks, "schedule": "interleaved" if chunks > 1 else "1f1b"}
        workload = WorkloadSpec(microbatches=8 * pp, microbatch_size=size)
        for what, published, levers in (
            ("tensor parallelism", plain, {}),
            ("with sequence parallelism, selective recompute", both, {"sequence_parallel": True, "recompute": "selective"}),
        ):
            spec = RunSpec(model=shape, layout=LayoutSpec(**layout | levers), workload=workload)
            ours, _ = accounting("korthikanti2022")(shape, workload, Grid.of([spec]))
            yield {"model": name, "activations": what, "published": str(states + published), "ours": str(ours[0] / 2**30)}


def _zero() -> Iterator[dict[str, Any]]:
    for billions, *published in ZERO:
        for zero, theirs in enumerate(published, start=1):
            ours = float(zero_states(billions * 1e9, 64, zero)) / 1e9
            yield {"parameters": f"{billions} B", "ZeRO": zero, "published": f"{theirs:g}", "ours": f"{ours:.3g}"}


def _bubbles(assumed: Assumptions) -> Iterator[dict[str, Any]]:
    """Sequences of 1,024 on A100; the first and the last stage have one layer less than the others, interleaved a layer a chunk.

    ZB-1P is found by a solver for the times at hand; beside it stands ZB-H1, which holds as much.
    """
    for billions, pp, microbatches, layers, hidden, heads, size, *published in BUBBLES:
        model = ModelSpec(layers=layers, hidden=hidden, heads=heads, seq=1024, vocab=50257)
        each = (layers + 2) // pp
        stages, chunks = (each - 1, *(each,) * (pp - 2), each - 1), (0, *(1,) * layers, 0)
        schedules: tuple[tuple[Any, int, Any], ...] = (("1f1b", 1, stages), ("interleaved", each, chunks), ("zb-h1", 1, stages))
        for (name, v, split), theirs in zip(schedules, published, strict=True):
            layout = LayoutSpec(pp=pp, schedule=name, chunks=v, split=split)
            workload = WorkloadSpec(microbatches=microbatches, microbatch_size=size, **_MIXED)
            _, ours = simulated(RunSpec(model=model, layout=layout, workload=workload), device("a100-80gb"), assumed)
            units = simulate(plan(layout, microbatches), textbook(layout)).bubble
            yield {
                "parameters": f"{billions} B", "pp": pp, "m": microbatches, "schedule": f"{name} × {v}", "published": theirs,
                "from the device": ours, "from unit times": units,
            }  # fmt: skip


def _megatron(assumed: Assumptions) -> Iterator[dict[str, Any]]:
    """Everything computed again, interleaved with messages cut over tp where there is a pipeline (sections 3.5, 4.1 and 5.1). The
    paper does not say how many chunks: the fewest that divide a stage's layers.
    """
    gpu, how = device("a100-80gb"), assumed.model_copy(update={"split_messages": True})
    for billions, layers, hidden, heads, tp, pp, gpus, batch, size, measured in MEGATRON:
        shape = ModelSpec(layers=layers, hidden=hidden, heads=heads, seq=2048, vocab=51200)
        each = layers // pp
        chunks = next(v for v in range(2, each + 1) if each % v == 0) if pp > 1 else 1
        dp = gpus // (tp * pp)
        layout = LayoutSpec(dp=dp, tp=tp, pp=pp, chunks=chunks, schedule="interleaved" if pp > 1 else "1f1b", recompute="full")
        workload = WorkloadSpec(microbatches=batch // dp // size, microbatch_size=size, **_MIXED)
        step, bubble = simulated(RunSpec(model=shape, layout=layout, workload=workload), gpu, how)
        flops = model_flops(shape) + recomputed_flops(shape, "full")
        ours = flops * batch / gpus / step / 1e12
        yield _row(f"{billions} B", layout, bubble, measured, ours)


def _llama(assumed: Assumptions) -> Iterator[dict[str, Any]]:
    """Sequences of 8,192, nothing computed again, optimizer and gradients sharded and reduced once a step, one layer a chunk with
    none beside the embedding and the head (section 3.3.2).
    """
    gpu, how = device("h100-80gb"), assumed.model_copy(update={"fused_attention": True})
    shape = model("llama3-405b")
    for tp, pp, dp, sequences, measured in LLAMA:
        chunks = (shape.layers + 2) // pp
        split = (0, *(1,) * shape.layers, 0)
        layout = LayoutSpec(
            dp=dp, tp=tp, pp=pp, chunks=chunks, schedule="interleaved", split=split, zero=1, sequence_parallel=True
        )
        workload = WorkloadSpec(microbatches=sequences, microbatch_size=1, **_MIXED)
        step, bubble = simulated(RunSpec(model=shape, layout=layout, workload=workload), gpu, how)
        ours = model_flops(shape) * sequences * dp / layout.ranks / step / 1e12
        yield _row(f"{layout.ranks:,} GPUs", layout, bubble, measured, ours)


def _row(name: str, layout: LayoutSpec, bubble: float, measured: float, ours: float) -> dict[str, Any]:
    error = 100 * (ours / measured - 1)
    return {
        "": name, "layout": layout.code, "chunks": layout.chunks, "bubble": bubble, "measured": f"{measured:g}",
        "predicted": f"{ours:.1f}", "error %": f"{error:+.1f}",
    }  # fmt: skip


if __name__ == "__main__":
    main()
