"""Published figures, and ours for the same. Published formulas are reproduced exactly; published measurements are predicted.

Nothing is fitted to a row. One set of assumptions, the planner's default, is used for all tables. Only facts of the measured
systems differ from it. They are in the comments of each table.
"""

from __future__ import annotations

from collections.abc import Iterator

from engine.grid import Grid
from engine.papers.accounting import accounting, zero_states
from engine.papers.allocated import allocated
from engine.papers.bloom import bloom
from engine.papers.bubbles import profiled
from engine.papers.reference import Reference
from engine.papers.throughput import measured
from engine.predict.speed.rates import Assumptions
from engine.spec import WHOLE_LOSS, LayoutSpec, ModelSpec, RunSpec, WorkloadSpec, sentence

KORTHIKANTI = "Korthikanti et al. 2022, Reducing Activation Recomputation in Large Transformer Models, figures 1 and 7"
RAJBHANDARI = "Rajbhandari et al. 2020, ZeRO, table 1"

# Name, layers, hidden, heads, tp, pp, chunks, microbatch size; GiB of states, of activations, and of activations with sequence
# parallelism and selective recompute (Korthikanti et al. 2022).
_ACTIVATIONS = (
    ("22 B", 48, 6144, 64, 8, 1, 1, 4, 45.5625, 59.25, 9.5625),
    ("gpt3-175b", 96, 12288, 96, 8, 8, 3, 1, 45.5625, 66.84375, 12.3515625),
    ("530 B", 105, 20480, 128, 8, 35, 3, 1, 31.640625, 114.0234375, 23.076171875),
    ("1 T", 128, 25600, 160, 8, 64, 1, 1, 32.958984375, 131.25, 26.5625),
)
# Billions of parameters, dp; GB with ZeRO 1, 2, 3. Some printed numbers are rounded, some are truncated.
_ZERO = (
    (7.5, 64, 31.4, 16.6, 1.88), (128.0, 64, 536.0, 284.0, 32.0), (1000.0, 64, 4187.0, 2218.0, 250.0),
    (7.5, 1024, 30.1, 15.1, 0.12), (128.0, 1024, 513.0, 257.0, 2.0), (1000.0, 1024, 4011.0, 2013.0, 15.6),
)  # fmt: skip


def references(assumed: Assumptions | None = None) -> list[Reference]:
    """All figures, source by source. `assumed`: for those that depend on hardware; None means the defaults.

    Raises `NotRecordedError`.
    """
    assumed = assumed or Assumptions()
    return [*_activations(), *_zero(), *allocated(), *bloom(), *measured(assumed), *profiled(assumed)]


def _activations() -> Iterator[Reference]:
    for name, layers, hidden, heads, tp, pp, chunks, microbatch, states, plain, both in _ACTIVATIONS:
        shape = ModelSpec(layers=layers, hidden=hidden, heads=heads, seq=2048, vocab=51200)
        layout = {"tp": tp, "pp": pp, "chunks": chunks, "schedule": "interleaved" if chunks > 1 else "1f1b"}
        workload = WorkloadSpec(microbatches=8 * pp, microbatch_size=microbatch, attention="written", loss_chunk=WHOLE_LOSS)
        mesh = f"tp{tp}.pp{pp}"
        with_both = sentence("{layout}, sequence parallel, selective recompute", layout=mesh)
        for described, published, levers in (
            (mesh, plain, {}),
            (with_both, both, {"sequence_parallel": True, "recompute": "core_attn"}),
        ):
            spec = RunSpec(model=shape, layout=LayoutSpec(**layout | levers), workload=workload)
            ours, _ = accounting("korthikanti2022")(shape, workload, Grid.of([spec]))
            yield Reference(KORTHIKANTI, name, described, "memory", states + published, float(ours[0]) / 2**30, exact=True)


def _zero() -> Iterator[Reference]:
    for billions, dp, *published in _ZERO:
        for zero, theirs in enumerate(published, start=1):
            ours = float(zero_states(billions * 1e9, dp, zero)) / 1e9
            size = f"{billions:g} B" if billions < 1000 else "1 T"
            yield Reference(RAJBHANDARI, size, f"dp{dp}, ZeRO {zero}", "states", theirs, ours, exact=True)
