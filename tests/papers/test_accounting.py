"""The papers' accounts of memory reproduce the papers' tables, to the last printed digit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from engine import catalog
from engine.grid import Grid
from engine.papers.accounting import accounting, activations_of_a_layer, numbers_of_a_token, passes_held, zero_states
from engine.papers.megatron import MegatronRun, megatron_stages
from engine.schedule import SCHEDULES, in_flight_bound
from engine.spec import SCHEDULE_FACTS, LayoutSpec, ModelSpec, RequestError, RunSpec, WorkloadSpec

GIB = 2**30
# Korthikanti et al. 2022, figures 1 and 7: layers, hidden, heads, tp, pp, chunks, microbatch size → GiB of states, of
# activations with tensor parallelism alone, and of activations with sequence parallelism and selective recompute.
KORTHIKANTI = {
    "22B": ((48, 6144, 64, 8, 1, 1, 4), (45.5625, 59.25, 9.5625)),
    "175B": ((96, 12288, 96, 8, 8, 3, 1), (45.5625, 66.84375, 12.3515625)),
}
# Rajbhandari et al. 2020, table 1, dp = 64: parameters → GB of a device with ZeRO 1, 2 and 3, as printed.
ZERO = {7.5e9: ("31.4", "16.6", "1.88"), 128e9: ("536", "284", "32")}


def one(model: ModelSpec, workload: dict[str, Any] | None = None, **layout: Any) -> Grid:
    counts = {"microbatches": 64} | (workload or {})
    return Grid.of([RunSpec(model=model, layout=LayoutSpec(**layout), workload=WorkloadSpec(**counts))])


@pytest.mark.parametrize("name", KORTHIKANTI)
def test_activations_are_those_of_korthikanti_2022(name: str) -> None:
    (layers, hidden, heads, tp, pp, chunks, size), (states, without, with_both) = KORTHIKANTI[name]
    model = ModelSpec(layers=layers, hidden=hidden, heads=heads, seq=2048, vocab=51200)
    layout = {"tp": tp, "pp": pp, "chunks": chunks, "schedule": "interleaved" if chunks > 1 else "1f1b"}
    account, workload = accounting("korthikanti2022"), WorkloadSpec()
    plain = account(model, workload, one(model, {"microbatch_size": size}, **layout))
    both = account(
        model, workload, one(model, {"microbatch_size": size}, **layout, sequence_parallel=True, recompute="core_attn")
    )
    assert plain[0][0] == (states + without) * GIB
    assert both[0][0] == (states + with_both) * GIB
    assert plain[1][0] == 0, "under 1F1B the first stage is the fullest"


@pytest.mark.parametrize("parameters", ZERO)
def test_states_are_those_of_zero_2020(parameters: float) -> None:
    for zero, printed in enumerate(ZERO[parameters], start=1):
        digits = len(printed.partition(".")[2])
        assert f"{float(zero_states(parameters, 64, zero)) / 1e9:.{digits}f}" == printed
    assert zero_states(parameters, 64, 0) == 16 * parameters


def test_zero_2020_reproduces_its_example() -> None:
    """Section 3: a GPT-2 of 1.5 billion parameters has 24 GB of states, and at sequences of 1,024 and a batch of 32 about 60 GB
    of activations, about 8 GB of memory where they are checkpointed.
    """
    model = ModelSpec(layers=48, hidden=1600, heads=25, vocab=50257, seq=1024)
    account = accounting("zero2020")
    states = 16 * model.parameters()
    whole, _ = account(model, WorkloadSpec(), one(model, {"microbatch_size": 32, "microbatches": 1}))
    again, _ = account(model, WorkloadSpec(), one(model, {"microbatch_size": 32, "microbatches": 1}, recompute="full"))
    assert round(states / 1e9) == 25
    assert round((whole[0] - states) / 1e9) == 60
    assert round((again[0] - states) / 1e9) == 5


def test_korthikantis_terms_use_the_widths_of_a_llama() -> None:
    """Llama 3 8B: 4,096 wide, 32 heads on 8 key heads of 128, a gated MLP of 14,336, 32 layers, no dropout."""
    model = catalog.model("llama3-8b")
    account, workload = accounting("korthikanti2022"), WorkloadSpec()
    around = 2 * 128_256 * 4096 + (2 * 32 + 1) * 4096  # both tables and all norms, which the paper leaves out
    matrices = 32 * (4096 * (2 * 4096 + 2 * 1024) + 3 * 4096 * 14_336)
    assert matrices == model.parameters() - around
    token = 8 * 4096 + 4 * (4096 + 1024) + 6 * 14_336  # bytes that a layer saves for each token, without attention scores
    plain, _ = account(model, workload, one(model, {"microbatch_size": 1, "microbatches": 1}))
    assert plain[0] == 18 * matrices + 32 * 8192 * (token + 2 * 32 * 8192)
    cut, _ = account(
        model,
        workload,
        one(model, {"microbatch_size": 1, "microbatches": 1}, tp=8, sequence_parallel=True, recompute="core_attn"),
    )
    assert cut[0] == (18 * matrices + 32 * 8192 * token) / 8
    again, _ = account(model, workload, one(model, {"microbatch_size": 1, "microbatches": 1}, recompute="full"))
    assert again[0] == 18 * matrices + 32 * 8192 * 2 * 4096


def test_korthikantis_account_needs_the_layers_of_a_gpt() -> None:
    for name in ("bert-large", "roberta-large"):
        model = catalog.model(name)
        layer = activations_of_a_layer(model, one(model, {"microbatch_size": 1}))[0]
        assert layer == model.seq * (34 * model.hidden + 5 * model.heads * model.seq), "as of a GPT"
    for name, family in (("transformer-big", "transformer"), ("xlnet-large", "xlnet")):
        model = catalog.model(name)
        with pytest.raises(RequestError, match=f"and {family} has other layers; gpt, bert, roberta, llama fit"):
            accounting("korthikanti2022")(model, WorkloadSpec(), one(model))


def test_zeros_twelve_activations_are_the_outputs_of_norms_and_matrices() -> None:
    assert numbers_of_a_token(catalog.model("gpt2-1.5b")) == 12 * 1600
    llama = 4096 + (4096 + 2 * 1024) + 4096 + 4096 + 4096 + 2 * 14_336 + 4096  # two norms, a gate and fewer keys
    assert numbers_of_a_token(catalog.model("llama3-8b")) == llama
    # Half of the layers attend to the encoder as well: a norm, queries, keys, values, attention and its output.
    assert numbers_of_a_token(catalog.model("transformer-base")) == (12 + 6 / 2) * 512
    two_streams = catalog.model("xlnet-large")
    bytes_, _ = accounting("zero2020")(two_streams, WorkloadSpec(), one(two_streams, {"microbatch_size": 1, "microbatches": 1}))
    kept = 2 * 12 * 1024 * 24 * two_streams.rows
    assert bytes_[0] == 16 * two_streams.parameters() + kept


def test_passes_in_flight_in_bulk_equal_those_of_each_schedule() -> None:
    cases = [
        (name, pp, m, chunks)
        for name, facts in SCHEDULE_FACTS.items()
        for pp in (1, 2, 4, 8)
        for m in (16, 17, 24)
        for chunks in ((facts.chunks,) if facts.chunks else (2, 3))
    ]
    whole = [
        np.array(values)
        for values in zip(*((pp, m, chunks, SCHEDULES.index(name)) for name, pp, m, chunks in cases), strict=True)
    ]
    ones = np.ones(len(cases), np.int64)
    grid = Grid(
        dp=ones, tp=ones, pp=whole[0], chunks=whole[2], microbatch_size=ones, microbatches=whole[1], zero=ones,
        sequence_parallel=ones > 1, recompute=ones, schedule=whole[3], cp=ones, context=0 * ones, ep=ones, recomputed=0 * ones,
        zero_replicas=ones,
    )  # fmt: skip
    assert passes_held(grid).tolist() == [in_flight_bound(name, 0, pp, m, chunks) for name, pp, m, chunks in cases]


def test_the_refusal_of_an_unknown_account_lists_the_names() -> None:
    with pytest.raises(RequestError, match="no accounting 'mine'; there are engine, megatron-core, korthikanti2022, zero2020"):
        accounting("mine")


def test_megatron_core_counts_what_its_kernels_keep() -> None:
    """A GPT differs from this engine's tensors by dummy gradients and workspaces alone, Llama also by the gated half of SwiGLU.

    A GPT's layer has 12 h² numbers in its matrices; a SwiGLU keeps 2 bytes a number of f less for each token in flight.
    """
    workload = WorkloadSpec(precision="bf16", accumulate="fp32", loss_chunk=-1, microbatches=4, microbatch_size=1)
    gpt = ModelSpec(layers=8, hidden=2048, heads=16, seq=4096, vocab=51200)
    llama = ModelSpec(family="llama", layers=8, hidden=2048, heads=16, seq=4096, vocab=51200, ffn=5504)
    for model, less in ((gpt, 0), (llama, 8 * 2 * 4096 * 5504)):
        grid = one(model, {"microbatch_size": 1, "microbatches": 4, "precision": "bf16", "accumulate": "fp32", "loss_chunk": -1})
        theirs, ours = (accounting(name)(model, workload, grid)[0][0] for name in ("megatron-core", "engine"))
        matrices = 4 * 2048**2 + (2 if model is gpt else 3) * 2048 * model.ffn_width
        assert theirs == pytest.approx(ours + 2 * matrices + 64 * 2**20 - less, rel=0.02)


def test_what_a_run_of_megatron_chooses_changes_its_account() -> None:
    model, workload = ModelSpec(layers=8, hidden=2048, heads=16, seq=4096, vocab=51200), WorkloadSpec(precision="bf16")
    grid = one(model, {"precision": "bf16", "microbatch_size": 2})
    plain, dropping, unfused = (
        float(megatron_stages(model, workload, grid, run)[0][0])
        for run in (MegatronRun(), MegatronRun(dropout=True), MegatronRun(fused_accumulation=False))
    )
    assert dropping - plain == (2 * 8 + 1) * 2 * 4096 * 2048, "a byte a number, twice a layer and behind the embedding"
    assert plain - unfused == 2 * 12 * 2048**2, "dummy gradients of a layer's shapes; both peaks are in the head"
    cut = one(model, {"precision": "bf16", "microbatch_size": 2}, tp=4)
    sequence = one(model, {"precision": "bf16", "microbatch_size": 2}, tp=4, sequence_parallel=True)
    assert megatron_stages(model, workload, sequence)[0] < megatron_stages(model, workload, cut)[0]


def test_megatron_core_refuses_other_layers_and_names_itself() -> None:
    model = ModelSpec(family="xlnet", layers=4, hidden=64, heads=4, vocab=264)
    refused = "megatron-core counts equal layers with plain self-attention, and xlnet has other layers"
    with pytest.raises(RequestError, match=refused):
        accounting("megatron-core")(model, WorkloadSpec(), one(model))


@pytest.mark.parametrize("account", ["megatron-core", "korthikanti2022"])
@pytest.mark.parametrize(
    ("parts", "named"),
    [
        ({"placement": "both"}, "placement=both"),
        ({"placement": "output", "qk_norm": "full"}, "placement=output, qk_norm=full"),
        ({"parallel": "one_norm"}, "parallel=one_norm"),
        ({"position": "alibi"}, "position=alibi"),
        ({"window": 16}, "window=16"),
    ],
)
def test_parts_that_an_account_does_not_count_are_refused(account: str, parts: dict[str, Any], named: str) -> None:
    model = ModelSpec(family="llama", layers=4, hidden=64, heads=4, seq=64, **parts)
    with pytest.raises(RequestError, match=f"{account} does not count {named}; the memory model engine does"):
        accounting(account)(model, WorkloadSpec(), one(model))


@pytest.mark.parametrize("account", ["megatron-core", "korthikanti2022"])
def test_with_tp_above_the_key_heads_each_rank_holds_a_whole_one(account: str) -> None:
    """With tp = 8, two key heads take as much of a rank as eight. In bytes, biases apart: a Llama has none."""
    few, many = (ModelSpec(family="llama", layers=4, hidden=512, heads=8, kv_heads=heads, seq=512) for heads in (2, 8))
    workload = WorkloadSpec(precision="bf16")
    two, eight = (accounting(account)(model, workload, one(model, {"precision": "bf16"}, tp=8))[0][0] for model in (few, many))
    assert two == eight
    two, eight = (accounting(account)(model, workload, one(model, {"precision": "bf16"}, tp=2))[0][0] for model in (few, many))
    assert two < eight
