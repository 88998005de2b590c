"""Memory that CUDA's allocator measured in runs of Megatron-LM, and this engine's own account of the same layouts.

The runs have flash attention, the loss of whole logits, fp32 gradients of bf16 parameters, the distributed optimizer (ZeRO 1),
sequence parallelism where there is tp, and no recompute. Some buffers of its kernels differ from this engine's, so the figures
agree nearly and not exactly.
"""

from __future__ import annotations

from collections.abc import Iterator

from engine.predict.memory import memory
from engine.predict.papers.reference import Reference
from engine.spec import WHOLE_LOSS, LayoutSpec, ModelSpec, RunSpec, WorkloadSpec, sentence

SIMUMAX = "SimuMax 1.2, docs/b200/b200_release_v1.2_summary.json: max_allocated of Megatron-LM"
_LLAMA = ModelSpec(family="llama", layers=12, hidden=8192, heads=64, kv_heads=8, ffn=28672, vocab=128256, seq=4096)
# dp, tp, pp, stage, GiB, of Llama 3 70B cut to 12 layers
_ROWS = ((4, 2, 1, 0, 60.68), (4, 1, 2, 0, 66.55), (4, 1, 2, 1, 62.97), (2, 4, 1, 0, 39.07), (1, 8, 1, 0, 28.29))


def allocated() -> Iterator[Reference]:
    """The measured peak of a rank, and ours. Raises `NotRecordedError`."""
    workload = WorkloadSpec(precision="bf16", accumulate="fp32", microbatches=4, microbatch_size=1, loss_chunk=WHOLE_LOSS)
    for dp, tp, pp, stage, published in _ROWS:
        layout = LayoutSpec(dp=dp, tp=tp, pp=pp, zero=int(dp > 1), sequence_parallel=tp > 1)
        ours = memory(RunSpec(model=_LLAMA, layout=layout, workload=workload)).peaks[stage].total / 2**30
        described = sentence("{layout}, stage {stage}", layout=layout.code, stage=stage)
        yield Reference(SIMUMAX, "llama3-70b, 12 layers", described, "memory", published, ours, device="b200")
