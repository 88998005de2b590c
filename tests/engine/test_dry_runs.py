"""Dry runs against measured runs: every rank's memory at its peak, and all traffic."""

from __future__ import annotations

from typing import Any

import pandas as pd
import pytest

from engine.launch.dry_run.tables import first_of_each_stage, result
from engine.launch.textbook import textbook
from engine.spec import GenerateSpec, RunSpec
from tests.launch.dry_runs import DryRunRequest, dry_run_all
from tests.runs import Runs, small

NEAR = 1e-3  # of the total at the peak


def lever(spec: RunSpec, **layout: Any) -> RunSpec:
    return spec.model_copy(update={"layout": spec.layout.model_copy(update=layout)})


# What tests/predict/test_agreement.py does not have: generation, real tensors, the curve.
SPECS = {
    "gpt": small("dp2.tp2.pp2", model={"vocab": 257}),
    "transformer, ZeRO 3": lever(small("dp2.pp2", "gpipe", model={"family": "transformer"}), zero=3, recompute="full"),
    "llama, zb-h1": small("tp2.pp2", "zb-h1", microbatches=3, model={"family": "llama", "kv_heads": 2}, precision="bf16"),
    "generation": small("dp2.tp2.pp2", model={"family": "llama"}).model_copy(
        update={"generate": GenerateSpec(prompt="abc", new_tokens=3, temperature=1.0, skip_training=True)}
    ),
}
FAKE = ("gpt", "llama, zb-h1", "generation")
ON_CPU = ("gpt", "transformer, ZeRO 3")


@pytest.fixture(scope="module")
def dry_runs() -> dict[tuple[str, str], Any]:
    """(name of the spec, device) → its dry run: one rank of each stage, repeated for the other ranks."""
    asked = {(name, device): SPECS[name] for device, names in (("none", FAKE), ("cpu", ON_CPU)) for name in names}
    answers = dry_run_all([DryRunRequest(spec, tuple(first_of_each_stage(spec)), device) for (_, device), spec in asked.items()])
    return {
        key: result(spec, {rank: one.rows for rank, one in answer.items()}, True, textbook(spec), {}, 0.0)
        for (key, spec), answer in zip(asked.items(), answers, strict=True)
    }


def totals(tables: dict[str, pd.DataFrame]) -> pd.Series:
    return tables["memory_peak"].groupby("rank")["bytes"].sum()


def traffic(tables: dict[str, pd.DataFrame]) -> list[tuple[Any, ...]]:
    return sorted(tables["traffic"].drop(columns="source").itertuples(index=False, name=None))


@pytest.mark.parametrize("name", FAKE)
def test_a_dry_run_equals_the_run_on_every_rank(runs: Runs, dry_runs: dict[tuple[str, str], Any], name: str) -> None:
    measured, dry = runs.result(SPECS[name]).tables, dry_runs[name, "none"].tables
    error = (totals(dry) / totals(measured) - 1).abs()
    assert len(error) == SPECS[name].layout.ranks
    assert error.max() <= NEAR, error
    assert traffic(dry) == traffic(measured)
    keys = ["rank", "category"]
    standing = pd.Series(["parameters", "gradients", "optimizer", "kv_cache"])
    kept = [t["memory_peak"].set_index(keys)["bytes"] for t in (dry, measured)]
    held = [k[k.index.get_level_values("category").isin(standing)] for k in kept]
    pd.testing.assert_series_equal(held[0], held[1])


@pytest.mark.parametrize("name", ON_CPU)
def test_a_dry_run_with_real_tensors_equals_the_run(runs: Runs, dry_runs: dict[tuple[str, str], Any], name: str) -> None:
    """As with --device cuda, but on the CPU."""
    measured, alone = runs.result(SPECS[name]).tables, dry_runs[name, "cpu"].tables
    assert totals(alone).to_dict() == totals(measured).to_dict()
    assert traffic(alone) == traffic(measured)


@pytest.mark.parametrize("name", ["gpt", "llama, zb-h1"])
def test_the_curve_has_the_actions_of_the_run(runs: Runs, dry_runs: dict[tuple[str, str], Any], name: str) -> None:
    curves = [t["memory_curve"] for t in (dry_runs[name, "none"].tables, runs.result(SPECS[name]).tables)]
    highest = [c.groupby(["rank", "action", "t_ns"])["bytes"].sum().groupby(["rank", "action"]).max() for c in curves]
    both = pd.concat(highest, axis=1, keys=["dry", "measured"], join="inner")
    work = both[both.index.get_level_values("action").str.match(r"[FBIW] ")]
    assert len(work) == len(highest[1][highest[1].index.get_level_values("action").str.match(r"[FBIW] ")])
    assert ((work["dry"] / work["measured"] - 1).abs() <= NEAR).all()
