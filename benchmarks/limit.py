"""How near a step is to what the machine can do: the same work without communication, and the same communication without work.

    python -m benchmarks.limit [--models small medium] [--layouts dp2 tp2 pp2] [--rounds 3]

`work`: a step of the unsharded model over the same global batch, in one process and thread, divided by the number of ranks: as if
it could be cut without loss. (Several threads in one process would be easier to reach, because small products gain little from
them.) `calls`: the collectives and messages that the ranks of a step make, and nothing else. Those of one kind have their mean
size; messages are all started at once. On a CPU both take the same cores, so the limit is their sum. `efficiency` is the limit ÷
a step of the engine, and `cpu efficiency` the CPU time of the work ÷ that of all ranks of the engine.
"""

from __future__ import annotations

import argparse
import statistics
from typing import TYPE_CHECKING

from benchmarks.torch_stack import SIZES, spec_of
from benchmarks.turns import EngineRank, Side
from engine.command.output import print_table
from engine.spec import LayoutSpec, RunSpec

if TYPE_CHECKING:
    import torch.distributed as dist


class BareRank(EngineRank):
    """A rank that only communicates: as often, and as much in each call, as in a step that it did before."""

    def __init__(self, rank: int, store: dist.Store, spec: RunSpec) -> None:
        import torch

        super().__init__(rank, store, spec)
        self._trainer.run_step(1)
        self._comm = self._trainer.comm
        self._calls = []
        for key, count in self._trainer.recorder.traffic.items():
            tensor = torch.zeros(count.payload_bytes // count.calls // 4)
            self._calls += [(key.collective, key.axis, key.group, tensor)] * count.calls

    def run_step(self, step: int) -> int:
        import torch.distributed as dist

        began = self._comm.common_instant()
        waiting = []
        for collective, axis, ranks, tensor in self._calls:
            if collective == "all_reduce":
                dist.all_reduce(tensor, group=self._comm.groups[axis].handle)
            else:
                (peer,) = set(ranks) - {self._comm.rank}
                waiting.append((dist.isend if collective == "send" else dist.irecv)(tensor, peer))
        for work in waiting:
            assert work is not None
            work.wait()
        return began


def unsharded(spec: RunSpec) -> RunSpec:
    """The same global batch on one rank."""
    workload = spec.workload
    more = {"microbatches": workload.microbatches * spec.layout.dp}
    return spec.model_copy(update={"layout": LayoutSpec(), "workload": workload.model_copy(update=more)})


def row(size: str, layout: str, rounds: int) -> dict[str, str]:
    spec = spec_of(SIZES[size], layout)
    ranks = spec.layout.ranks
    with Side(spec, EngineRank) as ours, Side(unsharded(spec), EngineRank) as alone, Side(spec, BareRank) as bare:
        sides = (ours, alone, bare)
        for side in sides:
            side.run(2)  # they warm up
        for _ in range(rounds):
            for side in sides:
                side.run(SIZES[size].steps)
    step, work, calls = (statistics.median(one.wall_ns for one in side.steps[2:]) / 1e6 for side in sides)
    cpu, work_cpu = (statistics.median(one.cpu_ns for one in side.steps[2:]) for side in (ours, alone))
    work /= ranks
    return {
        "model": size,
        "layout": layout,
        "work_per_rank_ms": f"{work:.1f}",
        "calls_ms": f"{calls:.1f}",
        "engine_ms": f"{step:.1f}",
        "efficiency": f"{(work + calls) / step:.2f}",
        "cpu_efficiency": f"{work_cpu / cpu:.2f}",
    }


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--models", nargs="+", choices=SIZES, default=["small", "medium"])
    options.add_argument("--layouts", nargs="+", choices=("dp2", "tp2", "pp2"), default=["dp2", "tp2", "pp2"])
    options.add_argument("--rounds", type=int, default=3)
    chosen = options.parse_args()
    rows = [row(size, layout, chosen.rounds) for size in chosen.models for layout in chosen.layouts]
    print(f"a step and its limit, medians of {chosen.rounds} rounds; efficiency = (work per rank + calls) ÷ the engine's step")
    print_table(rows)


if __name__ == "__main__":
    main()
