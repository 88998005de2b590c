"""Closed forms as papers print them: bytes of states and of activations, FLOPs of a step, for models of any size.

These are the papers' own accounts of mixed-precision training, for teaching and for reading published tables. `accounting` uses
the same constants for many layouts at once. `engine.predict.memory` predicts what this engine holds, to the byte.
"""

from __future__ import annotations

from engine.families import predicted
from engine.spec import ModelSpec, Recompute, sentence
from engine.terms import Factor, Term

# Bytes a parameter, Rajbhandari et al. 2020, section 3.1: fp16 values and gradients; fp32 values and two moments of the
# optimizer.
STATE_SIZES = {"parameters": 2, "gradients": 2, "optimizer": 12}
STATE_BYTES = sum(STATE_SIZES.values())
# The first ZeRO stage that shards each of them over dp.
SHARED_FROM = {"parameters": 3, "gradients": 2, "optimizer": 1}
# Coefficients of s·b·h, Korthikanti et al. 2022, table 2: what tp does not shard, what it shards, and the factor of a·s/h
# (scores).
LEFT_WHOLE, DIVIDED, SCORES = 10, 24, 5


def states(parameters: int, zero: int = 0, dp: int = 1) -> dict[str, Term]:
    """Bytes of a model's states on one of `dp` replicas, by category (Rajbhandari et al. 2020, figure 1 and section 5)."""
    found = {}
    for category, size in STATE_SIZES.items():
        shared = zero >= SHARED_FROM[category]
        share = Factor("Ψ/dp", -(-parameters // dp)) if shared else Factor("Ψ", parameters)
        found[category] = Term(category, (Factor("bytes", size), share))
    return found


def layer_activations(model: ModelSpec, microbatch: int, recompute: Recompute = "none") -> list[Term]:
    """Bytes of one layer's activations for one microbatch, tp = 1 (Korthikanti et al. 2022, sections 4.1 and 5).

    For the layer of a GPT, in fp16, with dropout: s·b·h·(34 + 5·a·s/h). Selective recompute leaves out the second part. Full
    recompute keeps only the layer's input.
    """
    sbh = (Factor("s", model.seq), Factor("b", microbatch), Factor("h", model.hidden))
    if recompute == "full":
        return [Term(sentence("input"), (Factor("2", 2), *sbh))]
    linear = Term(sentence("linear in s"), (Factor("34", LEFT_WHOLE + DIVIDED), *sbh))
    scores = (
        Factor("5", SCORES),
        Factor("a", model.heads),
        Factor("s", model.seq),
        Factor("s", model.seq),
        Factor("b", microbatch),
    )
    return [linear] if recompute == "core_attn" else [linear, Term(sentence("attention"), scores)]


def layer_flops(model: ModelSpec, microbatch: int) -> dict[str, int]:
    """FLOPs of one layer's forward pass (Korthikanti et al. 2022, appendix A): 24·b·s·h² + 4·b·s²·h.

    "attention" is the part that selective recompute computes again.
    """
    b, s, h = microbatch, model.seq, model.hidden
    return {"matrices": 24 * b * s * h * h, "attention": 4 * b * s * s * h}


def model_flops(model: ModelSpec) -> float:
    """FLOPs of forward and backward for one sequence, without recompute: three times those of forward.

    For a GPT, 72·L·s·h²·(1 + s/(6h) + V/(12·h·L)) (Narayanan et al. 2021, SC21, appendix). Masked scores are counted too.
    """
    queries, keys = model.heads * model.head_width, model.key_heads * model.head_width
    matrices = 3 if model.parts.gated else 2
    attention = model.hidden * (queries + 2 * keys) + queries * model.hidden + model.more_with_latents
    crossing = model.layers - model.encoder_layers if model.parts.encoder else 0
    blocks = model.layers + crossing
    scores = 4 * model.seq * queries
    if model.parts.position != "relative":
        scores = model.seq * model.heads * (model.head_width + model.value_width)
    layers = blocks * (attention + scores) + model.hidden * _inner_products(model, matrices)
    queries_asked = predicted("permuted", model.seq) if model.parts.objective == "permuted" else model.seq
    return 6.0 * (model.rows * layers + queries_asked * model.hidden * model.vocab)


def _inner_products(model: ModelSpec, matrices: int) -> int:
    """Products of a token with rows of width `model.hidden`, in the MLPs and experts of all layers that it goes through."""
    dense = (model.layers - model.expert_layers) * matrices * model.ffn_width
    each = matrices * (model.expert_choices * model.expert_width + model.shared_ffn) + model.experts
    return dense + model.expert_layers * each
