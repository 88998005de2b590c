"""What nvidia-smi showed while BLOOM's authors tried layouts, and what is predicted for the same layouts.

The figure is of the fullest node, which holds the embedding, so it is that of the first stage. It is of the device and not of the
allocator: the prediction is this engine's tensors, what DeepSpeed holds beside them, and what tensors do not take, as a plan
keeps it free. GPT with 250,880 words and 2,048 tokens, activation checkpointing of each layer, attention written out.

DeepSpeed's pipeline keeps the output of each microbatch in flight until its backward (runtime/pipe/engine.py, `pipe_buffers`).
Its ZeRO 1 in fp16 copies gradients into a buffer of 500 million numbers (runtime/zero/stage_1_and_2.py, `ipg_buffer`). Its
BF16_Optimizer adds gradients in fp32, and the pipeline leaves it the bf16 ones beside them (runtime/bf16_optimizer.py,
`update_hp_grads` with clear_lp_grads=False). Its FP16_Optimizer, ZeRO 0, makes fp32 copies of all gradients before the step, and
joins them to one more (runtime/fp16/fused_optimizer.py, `step`): 24 bytes a parameter at that moment.

What remains is that nvidia-smi shows all that the allocator has ever reserved. The copies of ZeRO 0 are large, and find no room
in the blocks that activations have left; so there the prediction, the larger of the two peaks, is lowest.
"""

from __future__ import annotations

from collections.abc import Iterator

from engine.devices import DEVICES
from engine.papers.reference import Reference
from engine.predict.memory import memory
from engine.spec import WHOLE_LOSS, LayoutSpec, ModelSpec, RunSpec, WorkloadSpec, sentence

BLOOM = (
    "BigScience, train/tr11-176B-ml/chronicles-prequel.md: nvidia-smi on the fullest node, Megatron-DeepSpeed, and this engine's "
    "tensors with what a plan keeps free"
)

_VOCAB, _TOKENS, _BATCH = 250_880, 2048, 2048
_BUCKET = 500_000_000  # numbers: reduce_bucket_size by default
# Layers, hidden size, heads; dp, tp, pp; microbatch size, ZeRO; whether it is bf16 with fp32 gradients; GB as printed. nvidia-smi
# counts MiB, so these are taken as GiB. The batch, where it is not 2,048 sequences, changes nothing here.
_ROWS = (
    (80, 13824, 64, 4, 8, 10, 4, 1, False, 53), (72, 14336, 64, 4, 8, 12, 8, 1, False, 69),
    (72, 14336, 64, 8, 8, 6, 1, 1, False, 38), (84, 13824, 64, 8, 8, 6, 4, 1, False, 56),
    (10, 14336, 64, 1, 8, 1, 1, 1, False, 80), (72, 14336, 64, 4, 8, 12, 2, 0, False, 72),
    (72, 14336, 32, 8, 8, 6, 4, 1, False, 55), (78, 13824, 128, 8, 8, 6, 4, 1, False, 54),
    (72, 14336, 64, 8, 8, 6, 4, 1, False, 56), (72, 14336, 64, 12, 8, 4, 4, 1, False, 59),
    (72, 14336, 64, 8, 4, 12, 4, 1, False, 60), (72, 14336, 64, 16, 2, 12, 2, 1, False, 63),
    (100, 12288, 64, 8, 8, 6, 4, 1, True, 72), (82, 13312, 104, 8, 4, 12, 2, 1, True, 62),
    (70, 14336, 64, 8, 4, 12, 4, 1, True, 73),
)  # fmt: skip


def bloom() -> Iterator[Reference]:
    """Raises `NotRecordedError`."""
    for layers, hidden, heads, dp, tp, pp, size, zero, wide, published in _ROWS:
        model = ModelSpec(family="gpt", layers=layers, hidden=hidden, heads=heads, seq=_TOKENS, vocab=_VOCAB)
        layout = LayoutSpec(dp=dp, tp=tp, pp=pp, zero=zero if dp > 1 else 0, recompute="full")
        workload = WorkloadSpec(
            precision="bf16",
            accumulate="fp32" if wide else "bf16",
            microbatches=_BATCH // dp // size,
            microbatch_size=size,
            attention="written",
            loss_chunk=WHOLE_LOSS,
        )
        ours = _on_the_device(RunSpec(model=model, layout=layout, workload=workload), zero) / 2**30
        described = sentence("{layout}, microbatch of {size}, ZeRO {zero}", layout=layout.code, size=size, zero=zero)
        if wide:
            described = sentence("{layout}, microbatch of {size}, ZeRO 1, fp32 gradients", layout=layout.code, size=size)
        yield Reference(BLOOM, f"{layers} × {hidden:,}", described, "memory", published, ours, device="a100-80gb")


def _on_the_device(spec: RunSpec, zero: int) -> int:
    """Bytes on a device of the first stage. `zero`: the stage that was set, with one replica too."""
    model, layout, workload = spec.model, spec.layout, spec.workload
    held = (layout.stage_layers(model.layers)[0] * model.layer_parameters(False) + _VOCAB * model.hidden) // layout.tp
    outputs = min(layout.pp, workload.microbatches) if layout.pp > 1 else 0  # of microbatches in flight
    tensors = memory(spec).peaks[0].total + outputs * workload.microbatch_size * model.seq * model.hidden * 2
    if workload.accumulate == "fp32":
        tensors += 2 * held
    elif zero:
        tensors += 2 * _BUCKET
    else:
        tensors = max(tensors, 24 * held)
    return tensors + _beside(layout, tensors)


def _beside(layout: LayoutSpec, tensors: int) -> int:
    """Bytes that tensors do not take. A first stage has communicators over tp, dp and pp, one with each neighbour (the last stage
    is one, runtime/pipe/topology.py), and one with the last stage for the tied weight.
    """
    device = DEVICES["a100-80gb"]
    several = sum(degree > 1 for degree in (layout.tp, layout.dp, layout.pp))
    pairs = 3 if layout.pp > 1 else 0
    fixed = device.context_bytes + device.workspace_bytes
    fixed += several * device.communicator_bytes + pairs * device.pair_communicator_bytes
    return fixed + round(tensors * device.fragmentation)
