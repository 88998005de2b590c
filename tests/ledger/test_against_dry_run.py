"""Predictions from ledgers equal a dry run of the whole step to the byte, on a rank of every stage."""

from __future__ import annotations

from typing import Any

import pytest
from torch.nn import functional as F

from engine.launch.dry_run.rank import dry_run_rank
from engine.launch.dry_run.tables import first_of_each_stage
from engine.launch.recording.record import record
from engine.launch.textbook import textbook
from engine.ledger.keep import Ledgers
from engine.model.mlp import INNER
from engine.predict.memory import memory
from engine.spec import LayoutSpec, RunSpec, WorkloadSpec
from tests.runs import SMALL


def spec(code: str, schedule: Any, layout: dict[str, Any], model: dict[str, Any], **workload: Any) -> RunSpec:
    return RunSpec(
        model=SMALL.model_copy(update=model),
        layout=LayoutSpec(**LayoutSpec.degrees(code), schedule=schedule, **layout),
        workload=WorkloadSpec(**{"microbatches": 2, "microbatch_size": 1} | workload),
    )


CASES = {
    "gpt, everything at once": spec(
        "dp2.tp2.pp2", "1f1b", {"zero": 3, "sequence_parallel": True, "recompute": "core_attn"}, {}, precision="bf16"
    ),
    "gpt, one sequence, one head a rank": spec(
        "dp2.tp2.pp2", "zb-h1", {"zero": 2, "recompute": "full"}, {"heads": 2, "vocab": 257}, microbatch_size=1
    ),
    "gpt, parts computed again": spec(
        "dp2.tp2.pp2", "zb-h1", {"zero": 3, "sequence_parallel": True, "recompute": "layernorm+mlp_act"}, {}, precision="bf16"
    ),
    "llama, parts computed again": spec(
        "dp2.tp2.pp2", "1f1b", {"zero": 2, "recompute": "core_attn+layernorm+mlp_act"}, {"family": "llama"}, attention="written"
    ),
    "encoder and decoder, activations computed again": spec(
        "tp2.pp2", "1f1b", {"recompute": "mlp_act"}, {"family": "transformer", "layers": 6}, microbatch_size=2
    ),
    "gpt, a stage without layers": spec("dp1.tp2.pp3", "zb-h1", {"split": (0, 5, 0)}, {}, microbatch_size=2),
    "gpt, embedding and head in one chunk": spec("dp1", "1f1b", {}, {"layers": 1}, microbatch_size=2),
    "llama, heads that share keys": spec(
        "dp2.tp2.pp2", "dualpipe-v", {"zero": 1, "chunks": 2, "sequence_parallel": True},
        {"family": "llama", "heads": 8, "kv_heads": 4, "layers": 9}, microbatches=4, precision="bf16",
    ),
    "llama, interleaved": spec(
        "dp2.pp2", "interleaved", {"chunks": 3, "zero": 2}, {"family": "llama", "layers": 7}, microbatch_size=2,
        precision="bf16", accumulate="bf16",
    ),
    "bert, over a V": spec("dp2.pp2", "zb-v", {"zero": 3, "chunks": 2}, {"family": "bert", "vocab": 264}, microbatches=4),
    "two streams": spec("tp2.pp2", "zb-v", {"chunks": 2, "recompute": "full"}, {"family": "xlnet", "vocab": 264}, microbatches=4),
    "gpt, loss in chunks beside embedding and layers": spec(
        "dp2", "1f1b", {"zero": 3}, {"layers": 1}, microbatch_size=2, loss_chunk=7
    ),
    "two streams, loss in chunks": spec(
        "tp2.pp2", "zb-h1", {"sequence_parallel": True}, {"family": "xlnet", "vocab": 264}, loss_chunk=3
    ),
    "encoder and decoder, all layers in one chunk": spec(
        "dp2.pp3", "gpipe", {"split": (0, 6, 0), "zero": 1}, {"family": "transformer", "layers": 6}
    ),
    "T5": spec(
        "dp2.tp2.pp2", "1f1b", {"zero": 3, "sequence_parallel": True}, {"family": "t5", "layers": 8}, microbatch_size=2,
        precision="bf16",
    ),
    "T5 over a V, a padded vocabulary": spec(
        "tp2.pp2", "zb-v", {"chunks": 2, "recompute": "core_attn"}, {"family": "t5", "layers": 8, "vocab_multiple": 200},
        microbatches=4,
    ),
    "bert, learned biases of distances": spec(
        "dp2.pp2", "zb-h1", {"zero": 2, "recompute": "full"},
        {"family": "bert", "layers": 6, "vocab": 264, "position": "buckets"},
    ),
    "llama, another base in layers with a window": spec(
        "tp2.pp2", "1f1b", {}, {"family": "llama", "layers": 6, "window": 5, "global_every": 3, "rotary_local_base": 10_000},
        microbatch_size=2,
    ),
    "llama, another base beside a window that hides nothing": spec(
        "tp2.pp2", "1f1b", {}, {"family": "llama", "layers": 6, "window": 500, "global_every": 3, "rotary_local_base": 10_000},
        microbatch_size=2,
    ),
    "llama, every other layer computed again": spec(
        "dp2.pp2", "interleaved", {"chunks": 2, "zero": 3, "recompute": "full", "recompute_every": 2},
        {"family": "llama", "layers": 11}, microbatches=4, precision="bf16",
    ),
    "encoder and decoder over a V, the first layers computed again": spec(
        "dp2.pp2", "zb-v", {"zero": 2, "chunks": 2, "recompute": "full", "recompute_layers": 1},
        {"family": "transformer", "layers": 12}, microbatches=4,
    ),
    "encoder and decoder": spec(
        "dp2.tp2.pp2", "1f1b", {"zero": 2, "sequence_parallel": True}, {"family": "transformer", "layers": 6}, microbatch_size=2
    ),
}  # fmt: skip
ONE_QUERY = spec(
    "dp2.tp2", "1f1b", {"zero": 2}, {"family": "llama", "kv_heads": 1}, precision="bf16", accumulate="bf16", microbatches=1
)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_the_peak_of_every_stage_and_category_is_that_of_a_dry_run(ledgers: Ledgers, case: RunSpec) -> None:
    for peak, rank in zip(memory(case, ledgers=ledgers).peaks, first_of_each_stage(case), strict=True):
        rows = dry_run_rank(case, rank, "none", textbook(case)).rows["memory_peak"]
        assert peak.bytes == {row["category"]: row["bytes"] for row in rows}


def test_every_rank_of_a_stage_holds_the_same(ledgers: Ledgers) -> None:
    """The norm of the gradients takes one number for each bucket, whatever is counted of it; there is no copy in fp32."""
    (peak,) = memory(ONE_QUERY, ledgers=ledgers).peaks
    for rank in range(4):
        rows = dry_run_rank(ONE_QUERY, rank, "none", textbook(ONE_QUERY)).rows["memory_peak"]
        assert peak.bytes == {row["category"]: row["bytes"] for row in rows}


def test_a_new_part_of_the_model_is_predicted_without_new_code(monkeypatch: pytest.MonkeyPatch) -> None:
    """Example: the activation function of Primer (So et al. 2021), whose backward takes more than the family's."""
    case = spec("dp2.pp2", "1f1b", {"zero": 1}, {}, microbatch_size=2)
    before = memory(case).fullest
    monkeypatch.setitem(INNER, "gelu_tanh", lambda x: F.relu(x).square())
    found = memory(case, ledgers=record)
    for peak, rank in zip(found.peaks, first_of_each_stage(case), strict=True):
        rows = dry_run_rank(case, rank, "none", textbook(case)).rows["memory_peak"]
        assert peak.bytes == {row["category"]: row["bytes"] for row in rows}
    assert found.fullest.total > before.total
