"""Generation without training, measured: a rank's model with its KV cache, and rows for the same tables as a training step.

The whole generation is measured as one step: spans, traffic and memory cover prefill and every decode step. The table of steps
has a row for each new token, without a loss.
"""

from __future__ import annotations

import math
from typing import Any

import torch.distributed as dist
from torch import Tensor

from engine.generate import Generator
from engine.measure.memory import MakeTracer, MemoryTrace, Tracer
from engine.model.chunk import TransformerChunk
from engine.objective import Feed
from engine.parallel.comm import Comm
from engine.parallel.routing import Routing
from engine.parallel.tensor import DTYPES, TensorParallel
from engine.phases import LauncherLink, begin_phase
from engine.spec import RunSpec
from engine.tables import Rows
from engine.weights import initial


class Inference:
    """The model of one rank with its initial weights, drawn or trained, and the rank's part in generation."""

    def __init__(self, spec: RunSpec, comm: Comm, link: LauncherLink, routing: Routing | None = None) -> None:
        """`routing`: in place of what the spec says."""
        self.comm, self.recorder, self.link = comm, comm.recorder, link
        self.tokens: list[int] = []  # of the timed generation
        placement = spec.layout.placement
        ranges = spec.layout.layer_ranges(spec.model.layers)
        tp = TensorParallel(
            comm, dtype=DTYPES[spec.workload.precision], routing=routing or Routing(spec.workload.balanced_router)
        )
        last = len(placement) - 1
        self.chunks = {
            c: TransformerChunk(spec.model, ranges[c], c == 0, c == last, _no_batch, tp, attention=spec.attention)
            for c, stage in enumerate(placement)
            if stage == comm.at.pp
        }
        weights = initial(spec.workload)
        for chunk in self.chunks.values():
            chunk.initialize(spec.workload.seed, weights)
            chunk.requires_grad_(False)
        self.generator = Generator(spec, self.chunks, comm, link.set_status)

    def run(self, store: dist.Store) -> Rows:
        """The timed generation. Returns rows of steps (from rank 0), spans and traffic."""
        begin_phase(self.link, self.comm.rank, "generating")
        rows: list[dict[str, Any]] = []
        prompt, dp, rank = self.generator.prompt.shape[1], self.comm.mesh.dp, self.comm.rank

        def add_row(number: int, ns: int) -> None:
            tokens = dp * (1 if number > 1 else prompt)
            rows.append({"step": number, "loss": math.nan, "grad_norm": math.nan, "step_ns": ns, "tokens": tokens})

        self.recorder.begin_step(1, self.comm.common_instant())
        self.tokens = self.generator.run(add_row)
        return {
            "steps": rows if rank == 0 else [],
            "spans": self.recorder.step_spans().moved(self.comm.measure_clocks()).rows(rank),
            "traffic": self.recorder.traffic_rows(rank),
        }

    def generate(self) -> list[int]:
        """The new tokens of the timed generation, on the ranks of the first stage."""
        return self.tokens

    def trace(self, make_tracer: MakeTracer = Tracer) -> MemoryTrace:
        """The memory of one more generation, by torch's profiler or another tracer."""
        owned: dict[str, list[Tensor]] = {
            "parameters": [p for chunk in self.chunks.values() for p in chunk.parameters()],
            "kv_cache": [t for pair in self.generator.cache.kept.values() for t in pair],
        }
        tracer = make_tracer(owned, self.recorder, self.comm.device)
        self.recorder.begin_step(2, self.comm.common_instant())
        with tracer.step():
            self.generator.run()
        return tracer.result()


def _no_batch(microbatch: int) -> Feed:
    raise AssertionError("generating needs no training data")
