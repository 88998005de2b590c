"""Memory by the formulas of papers, to reproduce their tables and compare them with the engine's own account.

    engine            this engine's own tensors, to the byte: see `engine.predict.bulk.memory`
    megatron-core     Megatron Core's tensors, with Transformer Engine: see `engine.papers.megatron`
    korthikanti2022   Korthikanti et al. 2022, Reducing Activation Recomputation in Large Transformer Models, table 2
    zero2020          Rajbhandari et al. 2020, ZeRO, figure 1 and section 3

The papers' accounts are for mixed precision with Adam and for written attention, whatever the workload says. They leave out all
temporary memory. Korthikanti's also leaves out embeddings and head. Both papers count the layer of a GPT and print sums for it.
Here the sums are written as terms, each with its own width. For a GPT they add up to the printed sums. For other families they
count their layers in the same way.

Symbols: s tokens, b sequences of a microbatch, h hidden, f the MLP's width, m its matrices (3 with a gate), a heads, q heads ×
width of a head, k key heads × width of a head, t = tp, L layers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from engine.families import FAMILIES, FamilyName, ModelParts
from engine.grid import Grid, Whole
from engine.papers.closed_forms import SCORES, SHARED_FROM, STATE_SIZES
from engine.papers.megatron import key_copies, megatron_stages
from engine.predict.bulk import memory as bulk
from engine.spec import ModelSpec, RequestError, WorkloadSpec, sentence

AccountingName = Literal["engine", "megatron-core", "korthikanti2022", "zero2020"]
ACCOUNTINGS: tuple[AccountingName, ...] = get_args(AccountingName)
Real = NDArray[np.float64]
Fullest = tuple[Whole, Whole]  # bytes of the fullest rank of each layout, and its stage: (n,) each
_WITHOUT_DROPOUT: tuple[FamilyName, ...] = ("llama",)


def accounting(name: str) -> Callable[[ModelSpec, WorkloadSpec, Grid], Fullest]:
    """The account of that name. Raises `RequestError` with a list of the names."""
    if name not in ACCOUNTINGS:
        raise RequestError(f"there is no accounting {name!r}; there are {', '.join(ACCOUNTINGS)}")
    accounts = {
        "engine": bulk.fullest,
        "megatron-core": megatron_core,
        "korthikanti2022": korthikanti2022,
        "zero2020": zero2020,
    }
    return accounts[name]


def megatron_core(model: ModelSpec, workload: WorkloadSpec, grid: Grid) -> Fullest:
    """The fuller of the first and the last stage. Raises `RequestError` if layers differ or are not of a kind that it counts."""
    _must_be_one_stack(model, "megatron-core")
    first, last = megatron_stages(model, workload, grid)
    return np.ceil(np.maximum(first, last)).astype(np.int64), np.where(first >= last, 0, grid.pp - 1)


def passes_held(grid: Grid) -> Whole:
    """The most passes of one microbatch through one chunk that are in flight on stage 0: `in_flight_bound` for arrays. (n,)"""
    held = np.zeros(len(grid), np.int64)
    for facts, rows in grid.schedules():
        held[rows] = facts.in_flight(0, grid.pp[rows], grid.microbatches[rows], grid.chunks[rows])
    return held


# ------------------------------------------------------------------------------------------------------ korthikanti2022


def korthikanti2022(model: ModelSpec, workload: WorkloadSpec, grid: Grid) -> Fullest:
    """States and activations of stage 0, which is the fullest under 1F1B.

    18 bytes a parameter: 2 for weights, 4 for gradients and 12 for the optimizer. The paper shards nothing over dp. If a layout
    does, the sharded part is divided by dp. Raises `RequestError` if layers differ or are not of the paper's kind.
    """
    _must_be_one_stack(model, "korthikanti2022")
    _refuse(model, "korthikanti2022", "kv_lora_rank", "experts")
    sharded = _shared(STATE_SIZES | {"gradients": 4}, grid.shards, grid.zero)
    parameters = model.layers * matrices_of_a_layer(model, key_copies(model, grid)) / (grid.pp * grid.tp)
    held = passes_held(grid) / grid.chunks / grid.pp * model.layers  # layers' worth of activations
    total = sharded * parameters + held * activations_of_a_layer(model, grid)
    return np.ceil(total).astype(np.int64), np.zeros(len(grid), np.int64)


def matrices_of_a_layer(model: ModelSpec, copies: Whole) -> Whole:
    """Parameters of one layer on all tp ranks as the paper counts them, without biases and norms. (n,)

    h·(2·q + 2·k) + m·h·f; for a GPT 12·h². `copies`: how many ranks hold the same key head, and its matrices.
    """
    queries, keys = _widths(model)
    found: Whole = model.hidden * (2 * queries + 2 * keys * copies + (3 if _gated(model) else 2) * model.ffn_width)
    return found


def activations_of_a_layer(model: ModelSpec, grid: Grid) -> Real:
    """Bytes of one layer's activations for one microbatch in 16 bits, section 4.1 and table 2. (n,)

    For each token, in bytes:

        8·h                 inputs of both norms, of attention and of the MLP; tp does not shard them
        2·h                 masks of the two dropouts outside of the blocks; tp does not shard them
        (4·q + 4·k)/t       queries and the output layer's input; keys and values, for key heads
        2·m·f/t             inputs of the nonlinearity, with the gate's, and its output
        5·a·s/t             scores: softmax 2, its dropout's mask 1 and result 2; without dropout only softmax's 2

    For a GPT that is h · (10 + 24/t + 5·a·s/(h·t)). Sequence parallelism divides the first two by t. Selective recompute drops
    the last. Full recompute keeps only the layer's input, 2·h. Llama as published has no dropout. With its gate the MLP keeps
    three tensors of width f, as with Megatron-LM's fused kernel. Each rank holds a whole key head at least: with t above the
    number of key heads, k is t heads wide.
    """
    s, h, t = model.seq, model.hidden, grid.tp
    queries, keys = _widths(model)
    drops = model.family not in _WITHOUT_DROPOUT
    whole = (8 + 2 * drops) * h / np.where(grid.sequence_parallel, t, 1.0)
    divided = 4 * (queries + keys * key_copies(model, grid)) + 2 * (3 if _gated(model) else 2) * model.ffn_width
    scores = np.where(grid.recomputes("core_attn"), 0.0, (SCORES if drops else 2) * model.heads * s / t)
    again = grid.recomputed_share(model.layers)  # of some layers alone, the paper has no figure: this is the mean
    return (again * 2.0 * h + (1 - again) * (whole + divided / t + scores)) * (s / grid.cp * grid.microbatch_size)


def _must_be_one_stack(model: ModelSpec, account: str) -> None:
    """Raises `RequestError` for an encoder with a decoder, two-stream attention, and parts that neither account counts."""

    def counted(family: ModelParts) -> bool:
        return not family.encoder and family.position != "relative"

    if not counted(model.parts):
        raise RequestError(
            sentence(
                "{account} counts equal layers with plain self-attention, and {family} has other layers; "
                "{families} fit, and the memory models engine and zero2020 support every family",
                account=account,
                family=model.family,
                families=", ".join(name for name, family in FAMILIES.items() if counted(family)),
            )
        )
    parts = model.parts
    has = {
        "placement": parts.placement in ("pre", "post"),
        "parallel": parts.parallel == "none",
        "qk_norm": parts.qk_norm == "none",
        "position": parts.position in ("learned", "rotary", "none"),
    }
    lacked = [f"{name}={getattr(parts, name)}" for name, fits in has.items() if not fits]
    if "window" in model.sized_parts:
        lacked.append(f"window={model.window}")
    if lacked:
        raise RequestError(
            sentence("{account} does not count {what}; the memory model engine does", account=account, what=", ".join(lacked))
        )


def _refuse(model: ModelSpec, account: str, *names: str) -> None:
    """Raises `RequestError` if one of these numbers of the model, which the account does not count, is not 0."""
    if what := next((name for name in names if getattr(model, name)), None):
        raise RequestError(
            sentence(
                "{account} does not count {what}; the memory model engine does",
                account=account,
                what=f"{what}={getattr(model, what)}",
            )
        )


def _widths(model: ModelSpec) -> tuple[int, int]:
    """q and k: the width of all heads, and of all key heads."""
    return model.heads * model.head_width, model.key_heads * model.head_width


def _gated(model: ModelSpec) -> bool:
    return model.parts.gated


# ------------------------------------------------------------------------------------------------------------- zero2020


def zero_states(parameters: Any, dp: Any, zero: Any) -> Any:
    """Bytes of the states of Ψ parameters on one of dp ranks, figure 1: weights 2Ψ, gradients 2Ψ, optimizer 12Ψ.

    ZeRO 1 divides the optimizer's part by dp, ZeRO 2 also the gradients', ZeRO 3 also the weights'. Numbers or arrays.
    """
    return _shared(STATE_SIZES, dp, zero) * parameters


def _shared(sizes: Mapping[str, int], dp: Any, zero: Any) -> Any:
    """Bytes a parameter on one of dp ranks. `sizes`: bytes of each category before sharding."""
    return sum(np.where(zero >= SHARED_FROM[category], size / dp, float(size)) for category, size in sizes.items())


def zero2020(model: ModelSpec, workload: WorkloadSpec, grid: Grid) -> Fullest:
    """States as in figure 1. Activations as in section 3.2, footnote 3: about 12·h numbers of 16 bits for each layer and token.

    The paper knows no experts. States of those that ranks share are sharded over the ranks that hold the same ones.
    With full recompute it is the layer's input only, h. The paper divides a model evenly, so a stage has the average of encoder
    and decoder layers.
    """
    cut, routed = grid.tp * grid.pp, model.expert_layers * model.expert_parameters[0] if model.experts else 0
    states = zero_states((model.parameters() - routed) / cut, grid.shards, grid.zero)
    states = states + zero_states(routed / (cut * grid.ep), grid.shards // grid.ep, grid.zero)
    again = grid.recomputed_share(model.layers)
    numbers = again * model.hidden + (1 - again) * numbers_of_a_token(model)
    held = passes_held(grid) / grid.chunks / grid.pp * model.layers
    activations = 2 * numbers * grid.microbatch_size * (model.rows / grid.cp) * held
    return np.ceil(states + activations).astype(np.int64), np.zeros(len(grid), np.int64)


def numbers_of_a_token(model: ModelSpec) -> float:
    """Numbers of activations of one token in a layer, averaged over all layers. The paper: 12·h for "a GPT-2 like architecture".

    The paper does not say which these are. Here they are the outputs of norms and matrices: two norms 2·h; queries, keys and
    values q + 2·k; attention q; its output layer h; the MLP's first matrix f (2·f with a gate) and its last h. A decoder layer
    with cross-attention has one more norm and attention. For GPT-2 that is 2 + 3 + 1 + 1 + 4 + 1 = 12, in units of h.
    """
    queries, keys = _widths(model)
    attention = model.hidden + (queries + 2 * keys) + queries + model.hidden  # with its norm
    mlp = model.hidden + (2 if _gated(model) else 1) * model.ffn_width + model.hidden
    crossing = model.layers - model.encoder_layers if model.parts.encoder else 0
    return attention * (1 + crossing / model.layers) + mlp
