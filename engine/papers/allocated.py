"""Memory that was measured on GPUs, and what is predicted for the same layouts.

Rows of Megatron-LM say what CUDA's allocator saw. They are held against the account `megatron-core`, and Llama 3 70B also against
this engine's own tensors. These runs have flash attention, the loss of whole logits, fp32 gradients of bf16 parameters, the
distributed optimizer (ZeRO 1), sequence parallelism where SimuMax has tp, and no recompute. Rows of torchtitan say what the
allocator reserved.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from engine.catalog import model as named
from engine.devices import DEVICES
from engine.grid import Grid
from engine.papers.megatron import MegatronRun, megatron_stages
from engine.papers.reference import Reference
from engine.predict.memory import memory
from engine.spec import WHOLE_LOSS, LayoutSpec, ModelSpec, RunSpec, WorkloadSpec, sentence

_SIMUMAX = "SimuMax 1.2, docs/b200/b200_release_v1.2_summary.json: max_allocated of Megatron-LM"
SIMUMAX = f"{_SIMUMAX}, and the account megatron-core"
SIMUMAX_ENGINE = f"{_SIMUMAX}, and this engine's own tensors"
GOLDEN = "Megatron-LM, golden values of its functional tests on DGX H100: mem-max-allocated-bytes of the last rank"
TORCHTITAN = "torchtitan, benchmarks/llama3_h100_202412_torchtitan.md: peak of reserved memory"

_70B = ModelSpec(family="llama", layers=12, hidden=8192, heads=64, kv_heads=8, ffn=28672, vocab=128256, seq=4096)
_405B = ModelSpec(family="llama", layers=4, hidden=16384, heads=128, kv_heads=8, ffn=53248, vocab=128256, seq=4096)
# dp, tp, pp; GiB of the first and of the last stage, if there are two
_SIMUMAX_ROWS: tuple[tuple[str, ModelSpec, tuple[tuple[int, int, int, tuple[float, ...]], ...]], ...] = (
    (
        "llama3-70b, 12 layers", _70B,
        ((4, 2, 1, (60.68,)), (4, 1, 2, (66.55, 62.97)), (2, 4, 1, (39.07,)), (1, 8, 1, (28.29,))),
    ),
    (
        "llama3-405b, 4 layers", _405B,
        ((4, 2, 1, (81.59,)), (4, 1, 2, (86.61, 87.08)), (2, 4, 1, (52.89,)), (1, 8, 1, (38.57,))),
    ),
)  # fmt: skip

# Four layers, of which the first has an MLP, by the arguments of simu_tools/megatron_scripts: each expert gets as many rows. dp,
# ep, pp; GiB of the fullest rank of the first and of the last stage.
_DEEPSEEK_ROWS: tuple[tuple[str, int, int, int, tuple[float, ...]], ...] = (
    ("deepseek-v2", 8, 8, 1, (45.63,)), ("deepseek-v2", 4, 4, 2, (31.59, 44.70)), ("deepseek-v3", 8, 8, 1, (104.30,)),
)  # fmt: skip

_GPT: dict[str, Any] = {"family": "gpt", "layers": 32, "kv_heads": 8, "tied": False}
_7B: dict[str, Any] = _GPT | {"hidden": 4096, "heads": 32, "seq": 8192, "vocab": 131073}
_15B: dict[str, Any] = _GPT | {
    "hidden": 6144, "heads": 48, "seq": 4096, "vocab": 256000, "position": "rotary", "inner": "relu2", "attention_bias": "none",
    "mlp_bias": False,
}  # fmt: skip
_7B_RUN = MegatronRun(dropout=True, fused_accumulation=False)  # its model_config.yaml leaves dropout at 0.1
# Test case, model, layout, microbatches and their size, settings, bytes. The 15B's 16 replicas follow from its steady bytes: 6 +
# 12 ÷ 16 a parameter. They ramp up the batch from 384 sequences.
_GOLDEN_ROWS: tuple[tuple[str, dict[str, Any], dict[str, Any], int, int, MegatronRun, int], ...] = (
    ("gpt3_7b_tp4_pp1_memory_speed", _7B, {"dp": 2, "tp": 4}, 2, 2, _7B_RUN, 57_143_791_616),
    (
        "gpt3_7b_tp1_pp4_memory_speed", _7B, {"dp": 2, "pp": 4, "chunks": 8, "schedule": "interleaved"}, 4, 1, _7B_RUN,
        60_720_852_992,
    ),
    ("gpt3_15b_8t_release", _15B, {"dp": 16, "tp": 8, "sequence_parallel": True}, 6, 4, MegatronRun(), 28_157_253_632),
)  # fmt: skip
# Devices, compiled or not, GiB
_TORCHTITAN_ROWS = ((8, False, 82.4), (8, True, 77.0), (128, False, 67.0), (128, True, 62.0))


def allocated() -> Iterator[Reference]:
    """The measured peak of a rank, and ours. Raises `NotRecordedError`."""
    yield from _simumax()
    yield from _by_engine()
    yield from _golden()
    yield from _torchtitan()


def _mixed(microbatches: int, size: int) -> WorkloadSpec:
    return WorkloadSpec(
        precision="bf16", accumulate="fp32", microbatches=microbatches, microbatch_size=size, loss_chunk=WHOLE_LOSS
    )


def _stages(model: ModelSpec, layout: LayoutSpec, workload: WorkloadSpec, run: MegatronRun | None = None) -> list[float]:
    """GiB of the first and the last stage by megatron-core."""
    grid = Grid.of([RunSpec(model=model, layout=layout, workload=workload)])
    return [float(held[0]) / 2**30 for held in megatron_stages(model, workload, grid, run)]


def _simumax() -> Iterator[Reference]:
    for name, model, rows in _SIMUMAX_ROWS:
        for dp, tp, pp, published in rows:
            layout = LayoutSpec(dp=dp, tp=tp, pp=pp, zero=int(dp > 1), sequence_parallel=tp > 1)
            for stage, (theirs, ours) in enumerate(zip(published, _stages(model, layout, _mixed(4, 1)), strict=False)):
                described = sentence("{layout}, stage {stage}", layout=layout.code, stage=stage)
                yield Reference(SIMUMAX, name, described, "memory", theirs, ours, device="b200")
    for name, dp, ep, pp, published in _DEEPSEEK_ROWS:
        layout, model = LayoutSpec(dp=dp, ep=ep, pp=pp, zero=1), named(name).model_copy(update={"layers": 4, "dense_layers": 1})
        stages = _stages(model, layout, _mixed(4, 1))
        for stage, (theirs, ours) in enumerate(zip(published, stages, strict=False)):
            described = sentence("{layout}, stage {stage}", layout=layout.code, stage=stage)
            yield Reference(SIMUMAX, f"{name}, 4 layers", described, "memory", theirs, ours, device="b200")


def _by_engine() -> Iterator[Reference]:
    name, model, rows = _SIMUMAX_ROWS[0]
    for dp, tp, pp, published in rows:
        layout = LayoutSpec(dp=dp, tp=tp, pp=pp, zero=int(dp > 1), sequence_parallel=tp > 1)
        peaks = memory(RunSpec(model=model, layout=layout, workload=_mixed(4, 1))).peaks
        for stage, theirs in enumerate(published):
            described = sentence("{layout}, stage {stage}", layout=layout.code, stage=stage)
            yield Reference(SIMUMAX_ENGINE, name, described, "memory", theirs, peaks[stage].total / 2**30, device="b200")


def _golden() -> Iterator[Reference]:
    for name, sizes, degrees, microbatches, size, run, bytes_ in _GOLDEN_ROWS:
        layout = LayoutSpec(**degrees, zero=1)
        _, ours = _stages(ModelSpec(**sizes), layout, _mixed(microbatches, size), run)
        yield Reference(GOLDEN, name, layout.code, "memory", bytes_ / 2**30, ours, device="h100-80gb")


def _torchtitan() -> Iterator[Reference]:
    """Llama 3.1 8B with FSDP2, two sequences of 8,192 tokens in a microbatch. What is compiled is not told apart.

    Per token, layers keep their input, every second product (queries, values, the MLP's gate, its output) and the result of
    attention, in bf16 (torchtitan/parallelisms/parallelize_llama.py). At the start of backward there are three fp32 tensors of
    logits: log-softmax, its gradient, and that of its input. The bf16 logits were freed before, in a block too small for those,
    which stays reserved. Parameters, gradients and two moments are fp32 and sharded; output layer and one more layer are gathered
    in bf16.
    """
    model, tokens = named("llama3-8b"), 2 * 8192
    keys, f, h = model.key_heads * model.head_width, model.ffn_width, model.hidden
    layers = 2 * model.layers * tokens * (4 * h + keys + f)
    logits = (3 * 4 + 2) * tokens * model.vocab
    table = model.vocab * h
    gathered = 2 * (table + (model.parameters() - 2 * table) // model.layers)
    for devices, compiled, published in _TORCHTITAN_ROWS:
        held = layers + logits + gathered + 2 * 2 * tokens * h + 16 * model.parameters() / devices
        ours = held * (1 + DEVICES["h100-80gb"].fragmentation) / 2**30
        mesh = f"dp{devices}.tp1.pp1"
        described = sentence("{layout}, ZeRO 3, compiled", layout=mesh) if compiled else f"{mesh}, ZeRO 3"
        yield Reference(TORCHTITAN, "llama3-8b", described, "memory", published, ours, device="h100-80gb")
