"""Step time against torch's own stack: the same model, weights, batches, layout and schedule, side by side.

    python -m benchmarks.torch_stack [--models tiny small medium] [--rows dp2 tp2 pp4:gpipe dp2:zero3 …] [--rounds 5]
                                     [--attention fused]

`benchmarks.torch_side` is the model on torch's stack, with what is best there: its kernel of attention, which the engine has too,
fused AdamW, DDP whose gradients are views of its buckets, `fully_shard`. Both sides start from the same weights and read the same
batches. The norms of all gradients of the first step must agree to a relative 1e-4, and the losses of the first steps to 1e-5;
otherwise the benchmark ends. Each size has a learning rate under which its loss falls smoothly.

Both sides run a process for each rank over gloo, with one thread for operators, and take turns a few steps at a time, so that
other load on the machine affects both (`benchmarks.turns`). A step is from the instant at which all ranks are ready to the end of
the optimizer's step on the last rank. On both sides it includes the norm of all gradients and the mean loss over all replicas.
`ratio` is ours ÷ theirs, the median of the rounds; `cpu ratio` is the same of the CPU time of all ranks.

Some differences belong to the stacks. DDP reduces buckets of up to 25 MB, the engine one bucket for each layer. With FSDP2,
torch's pipeline stage reduces after the last microbatch even for ZeRO 2 and 3, and holds whole gradients until then.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Iterable
from typing import Any, NamedTuple

from benchmarks.torch_side import TorchRank
from benchmarks.turns import EngineRank, Round, Side, take_turns
from engine.catalog import model
from engine.command.output import print_table
from engine.spec import LayoutSpec, RequestError, RunSpec, WorkloadSpec
from engine.spec.parts import AttentionName

LIMIT = 0.8  # times torch's step
LOSSES, NORMS = 1e-5, 1e-4  # largest relative differences of losses, and of gradient norms of equal weights
WARM_UP = 2  # steps that are not timed; the losses of these and of the first round are compared
ROWS = (
    "dp2", "dp4", "tp2", "tp4",
    *(f"pp{degree}:{schedule}" for degree in (2, 4) for schedule in ("gpipe", "1f1b", "interleaved")),
    "dp2.tp2", "dp2.pp2", "tp2.pp2", "dp2.tp2.pp2", "dp2:zero2", "dp2:zero3",
)  # fmt: skip


class Size(NamedTuple):
    """A model of the catalog. `sequences`: of a microbatch; `steps`: of each side in a round."""

    model: str
    learning_rate: float
    sequences: int
    steps: int


SIZES = {"tiny": Size("gpt-tiny", 1e-3, 2, 8), "small": Size("gpt-small", 3e-4, 2, 2), "medium": Size("gpt-medium", 1e-4, 1, 1)}


class Result(NamedTuple):
    """The rounds of one row of one size."""

    size: str
    row: str
    rounds: list[Round]

    @property
    def ratio(self) -> float:
        return statistics.median(one.ours / one.theirs for one in self.rounds)

    def printed(self) -> dict[str, str]:
        ratios = [one.ours / one.theirs for one in self.rounds]
        cpu = statistics.median(one.our_cpu / one.their_cpu for one in self.rounds)
        return {
            "model": self.size,
            "layout": self.row,
            "torch_ms": f"{1e3 * statistics.median(one.theirs for one in self.rounds):.1f}",
            "engine_ms": f"{1e3 * statistics.median(one.ours for one in self.rounds):.1f}",
            "ratio": f"{self.ratio:.2f}",
            "of_rounds": f"{min(ratios):.2f} to {max(ratios):.2f}",
            "cpu_ratio": f"{cpu:.2f}",
            f"{LIMIT}_at_most": "yes" if self.ratio <= LIMIT else "NO",
        }


def spec_of(size: Size, row: str, attention: AttentionName = "fused") -> RunSpec:
    """The spec of a row such as "pp4:gpipe" or "dp2:zero3". Raises `RequestError` if the model does not allow it."""
    code, _, lever = row.partition(":")
    levers: dict[str, Any] = {}
    if lever.startswith("zero"):
        levers["zero"] = int(lever.removeprefix("zero"))
    elif lever:
        levers = {"schedule": lever, "chunks": 2 if lever == "interleaved" else 1}
    layout = LayoutSpec.model_validate(LayoutSpec.degrees(code) | levers)
    workload = WorkloadSpec(learning_rate=size.learning_rate, microbatch_size=size.sequences, attention=attention)
    return RunSpec(model=model(size.model), layout=layout, workload=workload)


def compared(size: str, row: str, rounds: int, attention: AttentionName) -> Result:
    """Run one row. Ends the benchmark if the two sides do not do the same work."""
    spec, steps = spec_of(SIZES[size], row, attention), SIZES[size].steps
    with Side(spec, EngineRank) as ours, Side(spec, TorchRank.connected) as theirs:
        take_turns(ours, theirs, 1, WARM_UP)
        found = take_turns(ours, theirs, rounds, steps)
    early = range(WARM_UP + steps)
    losses = max(abs(ours.steps[i].loss / theirs.steps[i].loss - 1) for i in early)
    norms = abs(ours.steps[0].grad_norm / theirs.steps[0].grad_norm - 1)
    if not (losses <= LOSSES and norms <= NORMS):
        raise SystemExit(f"{size} {row}: not the same work, losses are {losses:.1e} and gradients' norms {norms:.1e} apart")
    if not ours.steps[early[-1]].loss < ours.steps[0].loss:
        raise SystemExit(f"{size} {row}: the loss does not fall")
    return Result(size, row, found)


def fitting(sizes: Iterable[str], rows: Iterable[str]) -> list[tuple[str, str]]:
    """Sizes and rows that go together: a model of 4 layers has no 8 chunks."""
    pairs = []
    for size in sizes:
        for row in rows:
            try:
                spec_of(SIZES[size], row)
            except RequestError as error:
                print(f"left out: {size} {row}, because {error}")
            else:
                pairs.append((size, row))
    return pairs


def geometric_mean(results: Iterable[Result]) -> float:
    return statistics.geometric_mean(result.ratio for result in results)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--models", nargs="+", choices=SIZES, default=list(SIZES))
    options.add_argument("--rows", nargs="+", default=ROWS, metavar="ROW", help="a layout, with :SCHEDULE or :zeroN")
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--attention", choices=("fused", "written"), default="fused", help="on both sides")
    chosen = options.parse_args()
    results = [compared(size, row, chosen.rounds, chosen.attention) for size, row in fitting(chosen.models, chosen.rows)]
    print(f"a step on torch's stack and on the engine, medians of {chosen.rounds} rounds; ratio = the engine's time ÷ torch's")
    print_table([result.printed() for result in results])
    print(f"geometric mean of the ratios: {geometric_mean(results):.2f}")


if __name__ == "__main__":
    main()
