"""Latent attention: it is that of DeepSeek-V2, every layout trains the same model, and predictions equal runs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional as F

from engine import dry_run
from engine.api import predict
from engine.measure.parity import PARITY_LIMIT
from engine.model.latent import LatentAttention
from engine.model.position import AttentionInputs
from engine.parallel.comm import Comm
from engine.parallel.tensor import TensorParallel
from engine.spec import AttentionName, GenerateSpec, LayoutSpec, ModelSpec, RequestError, RunSpec, WorkloadSpec
from engine.tables import RunResult, compared
from tests.runs import Runs

pytestmark = pytest.mark.usefixtures("one_thread")

SIZES: dict[str, Any] = {"family": "llama", "layers": 4, "hidden": 32, "heads": 4, "vocab": 256, "seq": 16, "ffn": 48}
LATENTS: dict[str, Any] = {"kv_lora_rank": 12, "q_lora_rank": 20, "qk_nope_head_dim": 8, "qk_rope_head_dim": 4, "v_head_dim": 6}
EXPERTS: dict[str, Any] = {"experts": 4, "expert_ffn": 16, "shared_ffn": 16, "dense_layers": 1}


def spec(layout: dict[str, Any], model: dict[str, Any], prompt: str = "", **workload: Any) -> RunSpec:
    return RunSpec(
        model=ModelSpec(**SIZES | LATENTS | model),
        layout=LayoutSpec(**layout),
        workload=WorkloadSpec(**{"steps": 2, "microbatches": 2, "microbatch_size": 1} | workload),
        generate=GenerateSpec(prompt=prompt, new_tokens=4),
        parity=True,
    )


# Together they have each pair of: queries from a latent or not, values as wide as keys or not, fused or written, sequence
# parallelism or features, one recompute or another; and pp, ZeRO 1 to 3, a window, experts, weight gradients in W.
RUNS = {
    "zero-bubble": spec(
        {"tp": 2, "pp": 2, "sequence_parallel": True, "schedule": "zb-h1"}, {"q_lora_rank": 0, "window": 5}, attention="written"
    ),
    "sequence": spec(
        {"dp": 2, "tp": 2, "zero": 2, "sequence_parallel": True, "recompute": "core_attn+layernorm+mlp_act"}, {"v_head_dim": 12}
    ),
    "experts": spec({"dp": 2, "tp": 2, "ep": 2, "zero": 3, "recompute": "full"}, EXPERTS, balanced_router=True),
    "features": spec(
        {"dp": 2, "tp": 4, "zero": 1, "recompute": "core_attn+layernorm"},
        {"q_lora_rank": 0, "v_head_dim": 0},
        prompt="abc",
        attention="written",
    ),
}
# One that only generates.
CACHED = spec({"tp": 2, "pp": 2}, EXPERTS).model_copy(
    update={"parity": False, "generate": GenerateSpec(prompt="abc", new_tokens=4, skip_training=True)}
)


@pytest.mark.parametrize("name", RUNS)
def test_every_layout_trains_the_same_model_as_predicted(runs: Runs, name: str) -> None:
    run = RUNS[name]
    result = runs.result(run)
    table = result.tables["parity"]
    assert table["max_rel"].max() <= PARITY_LIMIT, table.nlargest(3, "max_rel").to_string()
    assert result.summary["loss_max_abs"] <= PARITY_LIMIT
    _equal_to_the_byte_and_call(result, predict(run))


def _equal_to_the_byte_and_call(measured: RunResult, predicted: RunResult) -> None:
    for name in ("memory_peak", "traffic"):
        both = compared(name, measured.tables[name], predicted.tables[name])
        numbers = {column.removesuffix("_measured") for column in both.columns if column.endswith("_measured")}
        wrong = both[sum(both[f"{n}_measured"] != both[f"{n}_predicted"] for n in numbers) > 0]
        assert len(both)
        assert wrong.empty, wrong.to_string()


def test_a_dry_run_equals_the_formula() -> None:
    run = RUNS["sequence"].model_copy(update={"parity": False})
    _equal_to_the_byte_and_call(dry_run(run), predict(run))


def test_a_layout_generates_the_same_tokens_and_keeps_the_latent_alone(runs: Runs) -> None:
    run = RUNS["features"]
    alone = run.model_copy(update={"layout": LayoutSpec(), "workload": run.workload.model_copy(update={"microbatches": 4})})
    tokens = [runs.result(one).summary["generated"]["tokens"] for one in (run, alone)]
    assert tokens[0] == tokens[1]
    result = runs.result(CACHED)
    _equal_to_the_byte_and_call(result, predict(CACHED))
    peak = result.tables["memory_peak"]
    # 2 layers of each stage; 7 tokens; the latent and the turned part of the keys, on each tp rank.
    assert set(peak[peak["category"] == "kv_cache"]["bytes"]) == {2 * 7 * (12 + 4) * 4}


@pytest.mark.parametrize("attention", ["fused", "written"])
def test_it_is_attention_of_deepseek_v2(attention: AttentionName) -> None:
    """Equations 9 to 19 of the report, head by head. Here the turned numbers of a head come first."""
    tp, model = TensorParallel(Comm.alone(torch.device("cpu"))), ModelSpec(**SIZES | LATENTS)
    layer: Any = LatentAttention(model, tp, False, True, attention)
    for p in layer.parameters():
        torch.nn.init.normal_(p, std=0.5)
    x = torch.randn(2, 16, 32)
    inputs = AttentionInputs.of(model, None, tp, attention)
    assert inputs.rotation is not None
    c_q, c_kv, k_turned = (x @ layer.down.weight.T).split((20, 12, 4), -1)
    q = F.rms_norm(c_q, (20,), layer.query_norm.weight, 1e-5) @ layer.query.weight.T
    both = F.rms_norm(c_kv, (12,), layer.latent_norm.weight, 1e-5) @ layer.key_value.weight.T
    k_turned = inputs.rotation(k_turned.unsqueeze(1))[:, 0]
    heads = []
    for head in range(4):
        q_head, (k_nope, v) = q[..., 12 * head :][..., :12], both[..., 14 * head :][..., :14].split((8, 6), -1)
        q_turned = inputs.rotation(q_head[..., :4].unsqueeze(1))[:, 0]
        scores = (q_turned @ k_turned.mT + q_head[..., 4:] @ k_nope.mT) / (8 + 4) ** 0.5
        hidden = torch.ones(16, 16, dtype=torch.bool).triu(1)
        heads.append(scores.masked_fill(hidden, float("-inf")).softmax(-1) @ v)
    torch.testing.assert_close(layer(x, inputs), torch.cat(heads, -1) @ layer.out.weight.T, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"kv_lora_rank": 0}, "q_lora_rank=20 is for models with latents, and kv_lora_rank=0"),
        ({"kv_heads": 2}, "latent attention is not built with kv_heads=2; 0 fits"),
        ({"v_head_dim": 13}, "v_head_dim=13 is more than the 12 numbers of a key; up to 12 fits"),
        ({"qk_rope_head_dim": 2}, "qk_rope_head_dim is 2, and latent attention needs 4 and more"),
    ],
)
def test_what_does_not_go_together_is_refused(change: dict[str, Any], told: str) -> None:
    with pytest.raises(RequestError, match=told):
        ModelSpec(**SIZES | LATENTS | change)
    with pytest.raises(RequestError, match="latent attention is not built with context parallelism"):
        spec({"cp": 2}, {})
