"""Measured throughputs and step times of published systems, and the planner's predictions with one set of efficiencies.

Where a system works differently from this engine, the function that predicts it says so, with the source.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from engine.catalog import model, name_of
from engine.devices import device
from engine.papers.closed_forms import model_flops
from engine.papers.reference import Reference
from engine.predict.speed.rates import Assumptions
from engine.predict.speed.step_time import simulated
from engine.spec import AttentionName, LayoutSpec, ModelSpec, RunSpec, WorkloadSpec, sentence

_SC21 = "Narayanan et al. 2021, Efficient Large-Scale Language Model Training on GPU Clusters Using Megatron-LM"
NARAYANAN = f"{_SC21}, table 1"
NARAYANAN_2 = f"{_SC21}, table 2"
NARAYANAN_ZERO = f"{_SC21}, table 2, ZeRO 3 of DeepSpeed"
KORTHIKANTI_STEPS = "Korthikanti et al. 2022, Reducing Activation Recomputation in Large Transformer Models, table 5"
SMITH = "Smith et al. 2022, Using DeepSpeed and Megatron to Train Megatron-Turing NLG 530B, section 2.4"
GRATTAFIORI = "Llama team 2024, The Llama 3 Herd of Models, table 4"
NVIDIA_GPT3 = "NVIDIA DGX Cloud Benchmarking (2024), GPT-3 175B in bf16 with NeMo 24.09"
NVIDIA_NEMOTRON = "NVIDIA DGX Cloud Benchmarking (2024), Nemotron-4 340B in bf16 with NeMo 24.09"

_A100, _H100 = "a100-80gb", "h100-80gb"
_MIXED: Any = {"precision": "bf16", "accumulate": "fp32", "loss_chunk": "whole"}
# Layers, hidden, heads.
_175B, _530B, _1T = (96, 12288, 96), (105, 20480, 128), (128, 25600, 160)

# Billions of parameters, (layers, hidden, heads), tp, pp, chunks, GPUs, global batch, microbatch size, TFLOP/s of a GPU. Chunks
# and microbatch sizes are from the authors' scripts (examples/sc21 of the Megatron-LM repository).
_MEGATRON = (
    (1.7, (24, 2304, 24), 1, 1, 1, 32, 512, 16, 137),
    (3.6, (30, 3072, 32), 2, 1, 1, 64, 512, 16, 138),
    (7.5, (36, 4096, 32), 4, 1, 1, 128, 512, 16, 142),
    (18.4, (40, 6144, 48), 8, 1, 1, 256, 1024, 8, 135),
    (39.1, (48, 8192, 64), 8, 2, 1, 512, 1536, 4, 138),
    (76.1, (60, 10240, 80), 8, 4, 3, 1024, 1792, 2, 140),
    (145.6, (80, 12288, 96), 8, 8, 2, 1536, 2304, 2, 148),
    (310.1, (96, 16384, 128), 8, 16, 2, 1920, 2160, 1, 155),
    (529.6, _530B, 8, 35, 3, 2520, 2520, 1, 163),
    (1008.0, _1T, 8, 64, 1, 3072, 3072, 1, 163),
)
# (layers, hidden, heads), tp, pp, GPUs, global batch, microbatch size, TFLOP/s of a GPU.
_MEGATRON_2 = (
    (_175B, 8, 12, 384, 1536, 1, 153), (_175B, 8, 12, 768, 1536, 1, 149), (_175B, 8, 12, 1536, 1536, 1, 141),
    (_530B, 8, 35, 560, 2240, 1, 171), (_530B, 8, 35, 1120, 2240, 1, 167), (_530B, 8, 35, 2240, 2240, 1, 159),
    (_175B, 1, 1, 384, 1536, 4, 144), (_175B, 1, 1, 768, 1536, 2, 88), (_175B, 1, 1, 1536, 1536, 1, 44),
    (_530B, 1, 1, 640, 2560, 4, 138), (_530B, 1, 1, 1120, 2240, 2, 98), (_530B, 1, 1, 2240, 2240, 1, 48),
)  # fmt: skip
# Name, (layers, hidden, heads), pp, chunks, global batch, microbatch size; seconds with full recompute, and with sequence
# parallelism and selective recompute. tp = 8, dp = 1.
_KORTHIKANTI = (
    ("22 B", (48, 6144, 64), 1, 1, 4, 4, 1.42, 1.10),
    ("gpt3-175b", _175B, 8, 3, 64, 1, 18.13, 13.75),
    ("530 B", _530B, 35, 3, 280, 1, 49.05, 37.83),
    ("1 T", _1T, 64, 1, 512, 1, 94.42, 71.49),
)
_SMITH = ((8, 60.1), (10, 50.2), (12, 44.4))  # dp, seconds of a step of 1,920 sequences, tp8.pp35
# tp, pp, dp, sequences in a step for each replica, TFLOP/s of a GPU.
_LLAMA = ((8, 16, 64, 32, 430), (8, 16, 128, 16, 400))
# (dp, seconds), with tp4.pp8 and 64 sequences for each replica, and with tp8.pp8 and 16 sequences.
_GPT3_STEPS = ((4, 8.309), (8, 8.408), (16, 8.42), (32, 8.453), (64, 8.49))
_NEMOTRON_STEPS = ((2, 4.61), (4, 4.67), (8, 4.7), (16, 4.73), (32, 4.84))


def measured(assumed: Assumptions) -> Iterator[Reference]:
    yield from _megatron(assumed)
    yield from _megatron_2(assumed)
    yield from _korthikanti(assumed)
    yield from _smith(assumed)
    yield from _llama(assumed)
    yield from _nemo(assumed)


def _gpt(sizes: tuple[int, int, int]) -> ModelSpec:
    layers, hidden, heads = sizes
    return ModelSpec(layers=layers, hidden=hidden, heads=heads, seq=2048, vocab=51200)


def _seconds(
    shape: ModelSpec,
    layout: LayoutSpec,
    batch: int,
    size: int,
    gpu: str,
    assumed: Assumptions,
    attention: AttentionName = "written",
    **facts: Any,
) -> float:
    """Seconds of a step of `batch` sequences, `size` in a microbatch.

    `attention`: the system's own; those of 2021 and 2022 wrote the scores. `facts`: what else it does, in place of `assumed`.
    Only of a system that says so, collectives over tp overlap with the products of backward.
    """
    workload = WorkloadSpec(microbatches=batch // layout.dp // size, microbatch_size=size, attention=attention, **_MIXED)
    spec = RunSpec(model=shape, layout=layout, workload=workload)
    return simulated(spec, device(gpu), assumed.model_copy(update={"backward_overlap": False} | facts))[0]


def _interleaved(chunks: int) -> dict[str, Any]:
    return {"chunks": chunks, "schedule": "interleaved" if chunks > 1 else "1f1b"}


def _megatron(assumed: Assumptions) -> Iterator[Reference]:
    """Full recompute, whose FLOPs are counted, and messages sharded over tp (sections 3.5 and 4.1).

    With a pipeline, the gradient reduction does not overlap with backward (DDP=local in the scripts).
    """
    for billions, sizes, tp, pp, chunks, gpus, batch, size, theirs in _MEGATRON:
        shape = _gpt(sizes)
        layout = LayoutSpec(dp=gpus // (tp * pp), tp=tp, pp=pp, recompute="full", **_interleaved(chunks))
        hidden = assumed.dp_overlap if pp == 1 else 0.0
        step = _seconds(shape, layout, batch, size, _A100, assumed, split_messages=True, dp_overlap=hidden)
        yield _speed(NARAYANAN, f"{billions:g} B", shape, layout, batch, theirs, step)


def _megatron_2(assumed: Assumptions) -> Iterator[Reference]:
    """As in table 1. The paper does not say whether these schedules were interleaved; here they are not.

    ZeRO 3 is DeepSpeed's of that time, without tp and pp. It spent most of its time waiting for parameters, although its links
    could deliver them four times as fast.
    """
    for sizes, tp, pp, gpus, batch, size, theirs in _MEGATRON_2:
        shape = _gpt(sizes)
        layout = LayoutSpec(dp=gpus // (tp * pp), tp=tp, pp=pp, recompute="full", zero=0 if pp > 1 else 3)
        facts: dict[str, Any] = {"split_messages": True, "dp_overlap": 0.0} if pp > 1 else {}
        step = _seconds(shape, layout, batch, size, _A100, assumed, **facts)
        name = "175 B" if sizes == _175B else "530 B"
        yield _speed(NARAYANAN_2 if pp > 1 else NARAYANAN_ZERO, name, shape, layout, batch, theirs, step)


def _speed(source: str, name: str, shape: ModelSpec, layout: LayoutSpec, batch: int, theirs: float, step: float) -> Reference:
    """TFLOP/s of a GPU, with the FLOPs of recompute."""
    flops = flops_with_recompute(shape)
    described = f"{layout.code}, ZeRO 3" if layout.zero == 3 else layout.code
    return Reference(source, name, described, "speed", theirs, flops * batch / layout.ranks / step / 1e12, _A100)


def flops_with_recompute(shape: ModelSpec) -> float:
    """FLOPs for one sequence if all layers, but not the head, are computed again.

    For a GPT, 96·L·s·h²·(1 + s/(6h) + V/(16·L·h)) (Narayanan et al. 2021, SC21, appendix).
    """
    return model_flops(shape) * 4 / 3 - 2 * shape.seq * shape.hidden * shape.vocab


def _korthikanti(assumed: Assumptions) -> Iterator[Reference]:
    """In backward, collectives over tp overlap with products (section 4.2.2).

    There are two collectives in forward and three in backward, and two of these five are hidden. Gradient accumulation is fused,
    as in Megatron-LM since 2022.
    """
    facts: dict[str, Any] = {"tp_overlap": 0.4, "fused_accumulation": True, "split_messages": True}
    for name, sizes, pp, chunks, batch, size, whole, selective in _KORTHIKANTI:
        for recompute, cut, theirs in (("full", False, whole), ("core_attn", True, selective)):
            levers: dict[str, Any] = {"recompute": recompute, "sequence_parallel": cut}
            layout = LayoutSpec(tp=8, pp=pp, **_interleaved(chunks), **levers)
            both = sentence("{layout}, sequence parallel, selective recompute", layout=layout.code)
            described = both if cut else sentence("{layout}, full recompute", layout=layout.code)
            step = _seconds(_gpt(sizes), layout, batch, size, _A100, assumed, **facts)
            yield Reference(KORTHIKANTI_STEPS, name, described, "step", theirs, step, _A100)


def _smith(assumed: Assumptions) -> Iterator[Reference]:
    """DeepSpeed's 1F1B with full recompute. The gradient reduction does not overlap with backward.

    Our prediction is too fast, and no published setting explains it. The same model with tp8.pp35 on as many devices (2,240)
    reached 159 TFLOP/s with Megatron-LM's pipeline (NARAYANAN_2; ours is within 5%) and 126 with DeepSpeed's. The smaller batch,
    240 microbatches instead of 280, explains 2% of that. Messages are predicted whole. Some versions of its engine shard them
    over tp, which would make a step 0.4% shorter.
    """
    for dp, theirs in _SMITH:
        layout = LayoutSpec(dp=dp, tp=8, pp=35, schedule="1f1b", recompute="full")
        step = _seconds(_gpt(_530B), layout, 1920, 1, _A100, assumed, dp_overlap=0.0)
        yield Reference(SMITH, "530 B", layout.code, "step", theirs, step, _A100)


def _llama(assumed: Assumptions) -> Iterator[Reference]:
    """Sequences of 8,192 tokens, no recompute, optimizer and gradients sharded and reduced once a step (section 3.3.2).

    Attention is fused. A chunk has one layer. The chunks with the embedding and the head have none. The third row of the table
    uses context parallelism, which this engine does not have. The paper does not say whether its FLOPs count masked scores. All
    are counted here, as in the other tables. If half of them were, ours would be 4% lower.
    """
    shape = model("llama3-405b")
    for tp, pp, dp, sequences, theirs in _LLAMA:
        chunks, split = (shape.layers + 2) // pp, (0, *(1,) * shape.layers, 0)
        mesh: dict[str, Any] = {"dp": dp, "tp": tp, "pp": pp, "split": split}
        layout = LayoutSpec(**mesh, **_interleaved(chunks), zero=1, sequence_parallel=True)
        step = _seconds(shape, layout, sequences * dp, 1, _H100, assumed, "fused")
        ours = model_flops(shape) * sequences * dp / layout.ranks / step / 1e12
        yield Reference(GRATTAFIORI, name_of(shape), layout.code, "speed", theirs, ours, _H100)


def _nemo(assumed: Assumptions) -> Iterator[Reference]:
    """Sequence parallelism, no recompute, a sharded optimizer, twelve chunks a stage.

    Its settings: fused attention; gradient_accumulation_fusion; ub_tp_comm_overlap, which overlaps collectives over tp with
    products. They are taken to be hidden as far as those over dp are. Nemotron's squared ReLU and rotary positions are counted as
    the GELU and the position table of a GPT.
    """
    facts: dict[str, Any] = {"fused_accumulation": True, "tp_overlap": assumed.dp_overlap}
    nemotron = ModelSpec(layers=96, hidden=18432, heads=96, kv_heads=8, seq=4096, vocab=256000)
    for source, name, shape, tp, each, steps in (
        (NVIDIA_GPT3, "gpt3-175b", _gpt(_175B), 4, 64, _GPT3_STEPS),
        (NVIDIA_NEMOTRON, "340 B", nemotron, 8, 16, _NEMOTRON_STEPS),
    ):
        for dp, theirs in steps:
            layout = LayoutSpec(dp=dp, tp=tp, pp=8, **_interleaved(12), zero=1, sequence_parallel=True)
            step = _seconds(shape, layout, each * dp, 1, _H100, assumed, "fused", **facts)
            yield Reference(source, name, layout.code, "step", theirs, step, _H100)
