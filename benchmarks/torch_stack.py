"""Step time against torch's own stack: the same model, weights, batches, layout and schedule, side by side.

    python -m benchmarks.torch_stack [--model gpt-tiny] [--layouts dp2 tp2 pp2 dp2.tp2.pp2] [--schedule 1f1b] [--zero 0]
                                     [--steps 12] [--rounds 3] [--fused-attention]

`benchmarks.torch_side` is the model on torch's stack. Both sides start from the same weights and read the same batches. In the
first 12 steps, losses must agree to a relative 1e-5 and the norms of all gradients to 1%; otherwise no table is printed. (In a
step with a spike, the norms of two layouts of the engine differ by 0.1% too.)

Both sides run a process for each rank over gloo, forked from one that has imported torch, with one thread for operators. The
time of a step is that of a run's summary: the median over the second half of the steps, on the first rank of the last stage. It
is from the instant at which all ranks are ready to the end of its optimizer's step. On both sides it includes the norm of all
gradients and the mean loss over all replicas. The two take turns, and in every second round the other begins, so that other
load on the machine affects both.

Some differences belong to the stacks. DDP reduces buckets of up to 25 MB, the engine one bucket for each layer. With FSDP2,
torch's pipeline stage reduces after the last microbatch even for ZeRO 2 and 3, and holds whole gradients until then. The engine
computes attention step by step to show its S² term, and torch's side does the same; with --fused-attention it uses torch's
kernel.

Without tp the engine is slower: torch's side is then only kernels behind a thin layer of C++, and the engine's layers are
autograd functions in Python, two calls for each linear layer and microbatch. On gpt-tiny a step of one rank takes 43 against 34
ms of CPU time. About 5 of these 9 ms are the autograd functions; the rest is hooks, the loss and the norm.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import tempfile
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.running import ended
from engine import store
from engine.catalog import model
from engine.command.output import print_table
from engine.launch.queue import RunQueue
from engine.spec import LayoutSpec, RunSpec, WorkloadSpec

if TYPE_CHECKING:
    from benchmarks.torch_side import TimedStep

LIMIT = 0.8  # times torch's step
LOSSES, NORMS = 1e-5, 0.01  # largest relative differences of losses and of gradient norms
COMPARED = 12  # steps; in later ones rounding has grown, between two layouts of the engine as well


@dataclass
class Layout:
    """The results for one layout: seconds of a step in each round, and the largest relative difference of losses."""

    spec: RunSpec
    engine: list[float] = field(default_factory=list)
    torch: list[float] = field(default_factory=list)
    loss_difference: float = 0.0

    def round(self, queue: RunQueue, fused: bool, torch_first: bool) -> None:
        if torch_first:
            theirs = on_torch(self.spec, fused)
            ours = store.load(ended(queue, self.spec).folder)
        else:
            ours = store.load(ended(queue, self.spec).folder)
            theirs = on_torch(self.spec, fused)
        self.engine.append(ours.summary["step_ns"] / 1e9)
        self.torch.append(statistics.median(theirs.step_ns[len(theirs.step_ns) // 2 :]) / 1e9)
        steps = ours.tables["steps"].sort_values("step")[:COMPARED]
        self.loss_difference = max(
            self.loss_difference, float((steps["loss"] / theirs.losses[:COMPARED] - 1).abs().max(skipna=False))
        )
        norms = float((steps["grad_norm"] / theirs.grad_norms[:COMPARED] - 1).abs().max(skipna=False))
        if not (self.loss_difference <= LOSSES and norms <= NORMS):
            code = self.spec.layout.code
            raise SystemExit(
                f"{code}: not the same work, losses are {self.loss_difference:.1e} and gradients' norms {norms:.1%} apart"
            )

    def row(self) -> dict[str, str]:
        engine, torch = statistics.median(self.engine), statistics.median(self.torch)
        ratios = [a / b for a, b in zip(self.engine, self.torch, strict=True)]
        return {
            "layout": self.spec.layout.code,
            "torch_ms": f"{1e3 * torch:.1f}",
            "engine_ms": f"{1e3 * engine:.1f}",
            "ratio": f"{engine / torch:.2f}",
            "of_rounds": f"{min(ratios):.2f} to {max(ratios):.2f}",
            f"{LIMIT}_at_most": "yes" if engine / torch <= LIMIT else "NO",
            "losses_apart": f"{self.loss_difference:.1e}",
        }


def on_torch(spec: RunSpec, fused: bool) -> TimedStep:
    """What the rank whose times the engine reports saw of a run on torch's stack."""
    import torch.distributed as dist

    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch._inductor.config", "benchmarks.torch_side"])
    rendezvous = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    ranks = []
    for rank in range(spec.layout.ranks):
        ours, theirs = context.Pipe(duplex=False)
        process = context.Process(target=_be, args=(theirs, rendezvous.port, rank, spec, fused), daemon=True)
        process.start()
        theirs.close()
        ranks.append((process, ours))
    try:
        seen = [pipe.recv() for _, pipe in ranks]
    except EOFError:
        raise SystemExit(f"torch's stack did not finish {spec.layout.code}; its processes said why above") from None
    finally:
        for process, pipe in ranks:
            process.kill()
            process.join()
            pipe.close()
    return seen[(spec.layout.pp - 1) * spec.layout.dp * spec.layout.tp]


def _be(answer: Connection, port: int, rank: int, spec: RunSpec, fused: bool) -> None:
    import torch.distributed as dist

    from benchmarks.torch_side import train

    answer.send(train(rank, dist.TCPStore("127.0.0.1", port, is_master=False, wait_for_workers=False), spec, fused))


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--model", default="gpt-tiny", help="of the gpt family")
    options.add_argument("--layouts", nargs="+", default=["dp2", "tp2", "pp2", "dp2.tp2.pp2"])
    options.add_argument("--schedule", choices=("1f1b", "gpipe"), default="1f1b")
    options.add_argument("--zero", type=int, choices=range(4), default=0)
    options.add_argument("--steps", type=int, default=12)
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--fused-attention", action="store_true", help="let torch's side use its own attention kernel")
    chosen = options.parse_args()
    shape = model(chosen.model)
    if shape.family != "gpt":
        raise SystemExit(f"the model on torch's stack is of the gpt family, and {chosen.model} is of {shape.family}")
    levers = {"schedule": chosen.schedule, "zero": chosen.zero}
    workload = WorkloadSpec(steps=chosen.steps)
    layouts = [Layout(RunSpec(model=shape, layout=_layout(code, levers), workload=workload)) for code in chosen.layouts]
    with tempfile.TemporaryDirectory(prefix="shardscope-") as home, RunQueue(Path(home), unwatched_s=None) as queue:
        for number in range(chosen.rounds):
            for layout in layouts:
                layout.round(queue, chosen.fused_attention, torch_first=number % 2 == 1)
    print(f"{chosen.model}, {chosen.schedule}, zero {chosen.zero}: a step's time, median of {chosen.rounds} rounds")
    print_table([layout.row() for layout in layouts])


def _layout(code: str, levers: dict[str, object]) -> LayoutSpec:
    return LayoutSpec.model_validate(LayoutSpec.degrees(code) | levers)


if __name__ == "__main__":
    main()
