"""Families: what they send along a pipeline, and that their loss falls. test_parity.py has parity of all layouts and levers."""

from __future__ import annotations

from typing import Any

import pytest

from engine.families import FAMILIES, FamilyName
from engine.spec import LayoutSpec, ModelSpec, RunSpec, WorkloadSpec
from tests.covering import covering, title
from tests.runs import Runs

FP32, BF16 = 1e-5, 2e-2

# Beyond the pairs of choices that test_parity.py runs.
MORE: dict[str, dict[str, Any]] = {
    "all-axes": {"dp": 2, "tp": 2, "pp": 2, "schedule": "naive"},
    "zero-1": {"dp": 2, "tp": 2, "zero": 1, "sequence_parallel": True, "recompute": "full"},
    "everything": {"dp": 2, "tp": 2, "pp": 2, "zero": 3, "sequence_parallel": True, "recompute": "core_attn+mlp_act"},
    "interleaved": {"dp": 2, "tp": 2, "pp": 2, "chunks": 2, "zero": 2, "sequence_parallel": True, "schedule": "interleaved"},
    "zb-v": {"tp": 2, "pp": 2, "chunks": 2, "sequence_parallel": True, "recompute": "mlp_act", "schedule": "zb-v"},
    "dualpipe-v": {"dp": 2, "pp": 2, "chunks": 2, "zero": 1, "schedule": "dualpipe-v"},
}


def spec(family: FamilyName, layout: dict[str, Any], **workload: Any) -> RunSpec:
    grouped = {"kv_heads": 2} if family == "llama" else {}
    return RunSpec(
        model=ModelSpec(family=family, layers=4, hidden=32, heads=4, vocab=261, seq=16, ffn=48, **grouped),
        layout=LayoutSpec(**layout),
        workload=WorkloadSpec(**{"steps": 2, "microbatches": 2, "microbatch_size": 2} | workload),
        parity=True,
    )


@pytest.mark.nightly
@pytest.mark.parametrize("family", sorted(FAMILIES))
@pytest.mark.parametrize("layout", MORE)
def test_gradients_equal_the_unsharded_models_in_more_layouts(runs: Runs, family: FamilyName, layout: str) -> None:
    assert runs.result(spec(family, MORE[layout], microbatches=4)).summary["parity_max_rel"] <= FP32


def test_with_many_tokens_a_relu_model_has_parity_in_bf16(runs: Runs) -> None:
    """With ReLU, rounding can turn off a unit near zero, which removes a whole token from its weights' gradient. It matters
    less with 1,024 tokens than with 32."""
    layout = {"tp": 2, "pp": 2, "split": (3, 1), "sequence_parallel": True, "recompute": "core_attn"}
    asked = spec("transformer", layout, precision="bf16", microbatch_size=16)
    asked = asked.model_copy(update={"model": asked.model.model_copy(update={"hidden": 64, "seq": 64, "ffn": 256})})
    assert runs.result(asked).summary["parity_max_rel"] <= BF16


@pytest.mark.parametrize("family", ["bert", "transformer", "xlnet", "llama"])
def test_the_loss_falls(runs: Runs, family: FamilyName) -> None:
    """On one rank: all layouts equal it."""
    result = runs.result(spec(family, {}, steps=25, microbatch_size=4).model_copy(update={"parity": False}))
    steps = result.tables["steps"]["loss"]
    assert steps.iloc[-5:].mean() < steps.iloc[0] - 0.5


def sent_over_pp(runs: Runs, family: FamilyName, layout: dict[str, Any]) -> dict[tuple[int, str], int]:
    """Bytes by (rank, phase)."""
    traffic = runs.result(spec(family, layout)).tables["traffic"]
    sends = traffic[(traffic["axis"] == "pp") & (traffic["collective"] == "send")]
    totals = sends.groupby(["rank", "phase"], as_index=False)["payload_bytes"].sum()
    return {(int(rank), str(phase)): int(size) for rank, phase, size in totals.to_numpy()}


def test_the_encoders_output_is_sent_along_the_decoders_stages(runs: Runs) -> None:
    """Two tensors of (2, 16, 32) in fp32 at each cut between layers, one behind the last, for each of two microbatches; the
    gradients the same way back."""
    one = 2 * 16 * 32 * 4 * 2
    sent = sent_over_pp(runs, "transformer", {"pp": 4, "split": (1, 1, 2, 0)})
    forward = {rank: size for (rank, phase), size in sent.items() if phase == "forward"}
    backward = {rank: size for (rank, phase), size in sent.items() if phase == "backward"}
    assert forward == {0: 2 * one, 1: 2 * one, 2: one}
    assert backward == {1: 2 * one, 2: 2 * one, 3: one}


def test_both_streams_are_sent_together(runs: Runs) -> None:
    """16 tokens and 8 queries: (2, 24, 32) in fp32, for each of two microbatches."""
    sent = sent_over_pp(runs, "xlnet", {"pp": 2})
    assert sent == {(0, "forward"): 2 * 24 * 32 * 4 * 2, (1, "backward"): 2 * 24 * 32 * 4 * 2}


def test_an_untied_head_needs_no_tie(runs: Runs) -> None:
    for one in (s for s in covering() if s.layout.pp > 1 and not s.layout.facts.v_shaped):
        kinds = set(runs.result(one).tables["spans"]["kind"])
        assert ("tie" in kinds) == (one.model.family != "llama"), title(one)
