"""Generating without training, measured: a rank's model with its cache, and rows for the same tables as a training step.

The whole generation takes the place of a step: spans, traffic and memory cover prefill and every decode step; the table of steps
has a row for each new token, without a loss.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from torch import Tensor

from engine.generate import Generator
from engine.measure.memory import MakeTracer, MemoryTrace, Tracer
from engine.measure.recorder import Recorder
from engine.model.chunk import TransformerChunk, layer_ranges
from engine.objective import Feed
from engine.parallel.comm import Comm
from engine.parallel.tensor import DTYPES, TensorParallel
from engine.spec import RunSpec

Rows = dict[str, list[dict[str, Any]]]


class Inference:
    """One rank's model, as it was drawn, and its part in generating."""

    def __init__(self, spec: RunSpec, comm: Comm, recorder: Recorder, at: Callable[[str], None]) -> None:
        self.spec, self.comm, self.recorder = spec, comm, recorder
        placement = spec.layout.placement
        ranges = layer_ranges(spec.layout.chunk_layers(spec.model.layers))
        tp, last = TensorParallel(comm, dtype=DTYPES[spec.workload.precision]), len(placement) - 1
        self.chunks = {
            c: TransformerChunk(spec.model, ranges[c], c == 0, c == last, _no_batch, tp, "none")
            for c, stage in enumerate(placement)
            if stage == comm.at.pp
        }
        for chunk in self.chunks.values():
            chunk.draw(spec.workload.seed)
            chunk.requires_grad_(False)
        self.generator = Generator(spec, self.chunks, placement, comm, recorder, at)

    def generate(self) -> tuple[list[int], Rows]:
        """The timed generation: the new tokens of this replica, and rows of steps, spans and traffic."""
        rows: list[dict[str, Any]] = []
        prompt, dp, rank = self.generator.prompt.shape[1], self.comm.mesh.dp, self.comm.rank

        def told(number: int, ns: int) -> None:
            rows.append(
                {
                    "step": number,
                    "loss": math.nan,
                    "grad_norm": math.nan,
                    "step_ns": ns,
                    "tokens": dp * (1 if number > 1 else prompt),
                }
            )

        self.recorder.begin_step(1, self.comm.common_instant())
        tokens = self.generator.run(told)
        return tokens, {
            "steps": rows if rank == 0 else [],
            "spans": self.recorder.span_rows(rank),
            "traffic": self.recorder.traffic_rows(rank),
        }

    def trace(self, make_tracer: MakeTracer = Tracer) -> MemoryTrace:
        """Generate once more, under torch's profiler unless told otherwise."""
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
