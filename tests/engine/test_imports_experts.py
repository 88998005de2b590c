"""Experts and latents in the settings of other frameworks, and read again."""

from __future__ import annotations

import pytest

from engine import catalog
from engine.export import settings
from engine.spec import LayoutSpec, RequestError, RunSpec, WorkloadSpec
from tests.engine import megatron_rules
from tests.engine.test_imports import again


@pytest.mark.parametrize("name", ["mixtral-8x7b", "qwen3-30b-a3b", "deepseek-v2", "deepseek-v3", "deepseek-tiny", "llama4-scout"])
def test_experts_and_latents_are_the_same_in_a_script_of_megatron(name: str) -> None:
    layout = LayoutSpec(dp=8, tp=2, ep=4, zero=1, sequence_parallel=True)
    model = catalog.model(name)
    spec = RunSpec(model=model, layout=layout, workload=WorkloadSpec(precision="bf16", learning_rate=1e-4, seed=1))
    text = settings(spec, "megatron")
    assert not list(megatron_rules.broken(megatron_rules.read(text)))
    assert again(spec, "megatron") == spec
    with pytest.raises(megatron_rules.RefusedError, match="trains experts with tensor parallelism under sequence parallelism"):
        megatron_rules.read(settings(spec.model_copy(update={"layout": LayoutSpec(tp=2)}), "megatron"))


def test_experts_are_the_same_in_a_job_file_of_torchtitan() -> None:
    model = catalog.model("deepseek-v3")
    layout = LayoutSpec(dp=8, tp=2, ep=4, zero=3, sequence_parallel=True)
    spec = RunSpec(model=model, layout=layout, workload=WorkloadSpec(precision="bf16", learning_rate=1e-4))
    text = settings(spec, "torchtitan")
    assert "bias" not in text
    assert again(spec, "torchtitan") == spec
    lite = settings(spec.model_copy(update={"model": catalog.model("deepseek-v2-lite")}), "torchtitan")
    assert 'flavor = "16B"' in lite
    assert "# Not the same: it keeps loads alike by a bias of the router; here it is balancing=loss." in lite
    with pytest.raises(RequestError, match="an export to torchtitan does not know models with experts yet"):
        settings(spec.model_copy(update={"model": catalog.model("mixtral-8x7b")}), "torchtitan")
