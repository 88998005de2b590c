"""Generation: a sharded model generates the same tokens as the unsharded one."""

from __future__ import annotations

from typing import Any

import pandas as pd
import pytest

from engine.spec import FaultSpec, GenerateSpec, LayoutSpec, ModelSpec, RequestError, RunSpec, WorkloadSpec
from engine.tables import KV_CACHE
from tests.runs import Runs

PROMPT, NEW = "The ", 12
SHAPE = {"layers": 4, "hidden": 32, "heads": 4, "seq": 32}
FAMILIES = {
    "gpt": ModelSpec(**SHAPE),
    "llama": ModelSpec(family="llama", kv_heads=2, **SHAPE),
    "gemma": ModelSpec(family="llama", qk_norm="head", placement="both", inner="geglu", scaled_embedding=True, **SHAPE),
    "olmo": ModelSpec(family="llama", qk_norm="full", placement="output", **SHAPE),
    "neox": ModelSpec(position="rotary", parallel="two_norms", tied=False, **SHAPE),
    "mistral": ModelSpec(family="llama", kv_heads=1, window=7, global_every=3, rotary_width=4, **SHAPE),
    "bloom": ModelSpec(position="alibi", embedding_norm=True, **SHAPE),
}
# Several stages and slices, both ends of the pipeline on one rank, several chunks a stage, sharded weights, replicas.
LAYOUTS: dict[str, dict[str, Any]] = {
    "tp2.pp2": {"tp": 2, "pp": 2},
    "pp4": {"pp": 4},
    "interleaved": {"pp": 2, "schedule": "interleaved", "chunks": 2},
    "zb-v": {"dp": 2, "pp": 2, "schedule": "zb-v", "chunks": 2},
    "zero3": {"dp": 2, "tp": 2, "zero": 3},
}
FLOAT = 4


def spec(family: str, layout: dict[str, Any], trained: bool = True, **generate: Any) -> RunSpec:
    """Trained on the same data whatever dp is: four sequences a step."""
    layout_spec = LayoutSpec(**layout)
    workload = WorkloadSpec(steps=4, microbatches=4 // layout_spec.dp, microbatch_size=1, learning_rate=0.01)
    asked = GenerateSpec(**{"prompt": PROMPT, "new_tokens": NEW, "temperature": 0, "skip_training": not trained} | generate)
    return RunSpec(model=FAMILIES[family], layout=layout_spec, workload=workload, generate=asked)


def tokens(runs: Runs, of: RunSpec) -> list[int]:
    generated = runs.result(of).summary["generated"]
    assert generated["prompt"] == PROMPT
    assert bytes(generated["tokens"]).decode("utf-8", errors="replace") == generated["text"]
    return generated["tokens"]


@pytest.mark.parametrize(
    ("family", "layout"),
    [
        *(("gpt", layout) for layout in LAYOUTS),
        *((family, "tp2.pp2") for family in FAMILIES if family != "gpt"),
        ("llama", "zero3"),
    ],
)
def test_every_layout_generates_the_tokens_of_the_unsharded_model(runs: Runs, family: str, layout: str) -> None:
    whole = tokens(runs, spec(family, {}))
    assert len(whole) == NEW
    assert tokens(runs, spec(family, LAYOUTS[layout])) == whole


def test_sampled_tokens_are_the_same_in_every_layout(runs: Runs) -> None:
    """Sampled tokens vary more than the most likely ones of a barely trained model, so this compares more."""
    whole = tokens(runs, spec("gpt", {}, trained=False, temperature=1.0))
    assert len(set(whole)) > NEW // 2
    for layout in ("tp2.pp2", "interleaved"):
        assert tokens(runs, spec("gpt", LAYOUTS[layout], trained=False, temperature=1.0)) == whole


@pytest.mark.parametrize(("family", "keys"), [("gpt", 4), ("llama", 2)])
def test_the_cache_has_keys_and_values_of_every_token(runs: Runs, family: str, keys: int) -> None:
    """2 × layers × key heads × width × tokens, sharded over tp and pp. Grouped keys make it smaller."""
    table = runs.result(spec(family, {"tp": 2, "pp": 2}, trained=False)).tables["memory_peak"]
    held = table[table["category"] == KV_CACHE].set_index("rank")["bytes"]
    width = SHAPE["hidden"] // SHAPE["heads"]
    total = len(PROMPT) + NEW
    assert list(held) == [2 * (SHAPE["layers"] // 2) * (keys // 2) * width * total * FLOAT] * 4


def test_without_training_there_are_no_gradients_and_no_optimizer(runs: Runs) -> None:
    result = runs.result(spec("gpt", {"pp": 2}, trained=False))
    table = result.tables["memory_peak"].set_index("category")["bytes"]
    assert table[["gradients", "optimizer"]].eq(0).all()
    assert "loss_last" not in result.summary


def test_the_spans_show_prefill_and_each_decode_step(runs: Runs) -> None:
    result = runs.result(spec("gpt", {"pp": 2}, trained=False))
    spans: pd.DataFrame = result.tables["spans"]
    for rank in (0, 1):
        mine = spans[(spans["rank"] == rank) & (spans["kind"] == "F")]
        assert list(mine["microbatch"]) == list(range(NEW))
    steps = result.tables["steps"]
    assert list(steps["tokens"]) == [len(PROMPT), *[1] * (NEW - 1)]
    phases = result.tables["traffic"].groupby("phase")["calls"].sum()
    assert set(phases.index) == {"prefill", "decode"}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"model": ModelSpec(family="bert", vocab=257)}, "bert does not predict the next token; gpt and llama do"),
        ({"generate": GenerateSpec(prompt="x" * 60, new_tokens=10)}, "do not fit into seq=64; new_tokens up to 4 fits"),
        ({"generate": GenerateSpec(skip_training=True)}, "there is no prompt to continue"),
        ({"layout": LayoutSpec(tp=2, sequence_parallel=True)}, "one token cannot be sharded along the sequence"),
        ({"parity": True, "generate": GenerateSpec(prompt="x", skip_training=True)}, "parity compares gradients"),
    ],
)
def test_an_impossible_generation_is_refused_with_the_reason(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(RequestError, match=reason):
        RunSpec(**{"generate": GenerateSpec(prompt="x")} | changes)


def test_a_rank_that_fails_while_training_ends_the_run_before_it_generates(runs: Runs) -> None:
    broken = spec("gpt", {"dp": 2}).model_copy(update={"fault": FaultSpec(kind="raise", rank=1, step=2)})
    state = runs.ended(broken)
    assert (state.phase, state.failed_rank) == ("failed", 1)
