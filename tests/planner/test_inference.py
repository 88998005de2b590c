"""Inference predicted: parameters and cache as measured where it runs here, and as published where it does not."""

from __future__ import annotations

import pytest

from engine.catalog import MODELS
from engine.launch.recording.recordings import shipped_models
from engine.planner.inference import cache, inference_table, inference_traffic, most_sequences, weights
from engine.spec import LayoutSpec, ModelSpec
from engine.tables import KV_CACHE
from engine.terms import total
from tests.engine import test_generation
from tests.runs import Runs

GPT3 = MODELS["gpt3-175b"]


@pytest.mark.parametrize("family", ["gpt", "llama"])
def test_predicted_parameters_cache_and_traffic_equal_the_measured_ones(runs: Runs, family: str) -> None:
    """One sequence through tp2.pp2, prompt and answer."""
    spec = test_generation.spec(family, test_generation.LAYOUTS["tp2.pp2"], trained=False)
    result = runs.result(spec)
    measured = result.tables["memory_peak"].set_index(["rank", "category"])["bytes"]
    length = len(test_generation.PROMPT) + test_generation.NEW
    for stage in (0, 1):
        for rank in (2 * stage, 2 * stage + 1):
            assert total(weights(spec.model, spec.layout, "fp32", stage)) == measured[rank, "parameters"]
            assert total(cache(spec.model, spec.layout, "fp32", stage, 1, length)) == measured[rank, KV_CACHE]
    sent = result.tables["traffic"].query("collective != 'recv'")
    for phase, tokens, passes in (("prefill", len(test_generation.PROMPT), 1), ("decode", 1, test_generation.NEW - 1)):
        of_a_rank = sent[sent["phase"] == phase].groupby(["axis", "collective", "rank"])[["calls", "wire_bytes"]].sum()
        for (axis, collective), (calls, wire) in inference_traffic(spec.model, spec.layout, "fp32", 1, tokens).items():
            busiest = of_a_rank.loc[axis, collective].sort_values("wire_bytes").iloc[-1]
            assert (calls * passes, wire * passes) == (busiest["calls"], busiest["wire_bytes"]), (phase, axis, collective)


def test_without_sharding_a_rank_has_all_parameters() -> None:
    """Of the models whose ledgers are shipped: families as they are."""
    families = [model for model in shipped_models() if not model.chosen_parts and not model.sized_parts]
    for model in [*families, *(ModelSpec(family=family, vocab=300) for family in {model.family for model in families})]:
        assert total(weights(model, LayoutSpec(), "bf16", 0)) == 2 * model.parameters()


def test_gpt3_caches_4_7_megabytes_for_each_token() -> None:
    """2 × 96 layers × 12,288 × 2 bytes; a full context of 2,048 tokens is 9.7 GB, and its parameters are 350 GB."""
    assert total(cache(GPT3, LayoutSpec(), "bf16", 0, 1, 1)) == 2 * 96 * 12288 * 2 == 4_718_592
    one = inference_table(GPT3, LayoutSpec(tp=8), "bf16", [1, 16], [2048])
    assert one["kv_cache"].tolist() == [4_718_592 * 2048 // 8, 16 * 4_718_592 * 2048 // 8]
    assert 8 * one["parameters"].iloc[0] == pytest.approx(350e9, rel=0.01)


def test_the_number_of_sequences_that_fit_beside_the_parameters() -> None:
    layout, memory = LayoutSpec(tp=8), 80 * 10**9
    fits = most_sequences(GPT3, layout, "bf16", 2048, memory)
    for batch, inside in ((fits, True), (fits + 1, False)):
        row = inference_table(GPT3, layout, "bf16", [batch], [2048]).iloc[0]
        assert (row["parameters"] + row["kv_cache"] <= memory) == inside
    assert most_sequences(GPT3, LayoutSpec(tp=4), "bf16", 2048, memory) == -1


def test_grouped_keys_make_the_cache_smaller_and_encoders_have_none() -> None:
    grouped = MODELS["llama-tiny"]
    every = grouped.model_copy(update={"kv_heads": 0})
    assert total(cache(every, LayoutSpec(), "bf16", 0, 3, 10)) == 2 * total(cache(grouped, LayoutSpec(), "bf16", 0, 3, 10))
    assert cache(MODELS["bert-base"], LayoutSpec(), "bf16", 0, 3, 10) == ()
    both = MODELS["transformer-base"]  # six decoder layers, which keep the source's keys and values too
    assert total(cache(both, LayoutSpec(), "bf16", 0, 1, 10)) == 2 * 6 * (10 + both.seq) * both.hidden * 2
