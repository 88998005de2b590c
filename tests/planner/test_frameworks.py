"""A search for the layouts that one framework runs as they are, and what a training takes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from engine import catalog
from engine.export import settings
from engine.optimizer import Framework
from engine.planner.bill import Bill
from engine.planner.candidates import candidates
from engine.planner.frameworks import had_by
from engine.planner.search import MIXED
from engine.spec import Precision, RequestError, WorkloadSpec

# What an export says where it sets up something else than the layout.
INSTEAD = (
    "becomes", "runs instead", "is the nearest", "no pipeline", "no replicas", "has none", "autocast", "its sequence parallelism",
    "sequence parallel too", "Does not", "is left out", "selective recompute chooses", "stands for ZeRO", "is no setting",
)  # fmt: skip


@pytest.mark.parametrize(
    ("framework", "name", "batch"),
    [
        ("megatron", "gpt3-13b", 128),
        ("megatron", "transformer-big", 64),
        ("torchtitan", "llama3-8b", 64),
        ("deepspeed", "gpt3-6.7b", 64),
    ],
)
def test_a_framework_gets_all_layouts_that_it_runs_as_they_are(framework: Framework, name: str, batch: int) -> None:
    """An export says nothing against a layout that is kept, and something against one that is left out."""
    model = catalog.model(name)
    grid = candidates(model, 16, batch, MIXED)
    kept = had_by(framework, model, MIXED, grid)
    assert 0 < kept.sum() < len(grid)
    random = np.random.default_rng(0)
    for wanted in (True, False):
        for row in random.choice(np.flatnonzero(kept == wanted), 100, replace=False):
            text = settings(grid.spec(int(row), model, MIXED), framework)
            assert (not any(words in text for words in INSTEAD)) == wanted, text


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
@pytest.mark.parametrize("framework", ["torchtitan", "deepspeed"])
def test_replicas_of_a_cut_sequence_are_replicas(framework: Framework, precision: Precision) -> None:
    """With cp > 1 and dp = 1 gradients are added up over cp all the same: torchtitan shards over it, and DeepSpeed has none."""
    model = catalog.model("llama3-8b").model_copy(update={"seq": 32_768})
    workload = WorkloadSpec(precision=precision, accumulate="fp32")
    grid = candidates(model, 4, 16, workload)
    cut = np.flatnonzero((grid.cp > 1) & (grid.dp == 1))
    kept = had_by(framework, model, workload, grid)[cut]
    assert kept.any() == (framework == "torchtitan")
    for row, wanted in zip(cut[:: max(1, len(cut) // 60)], kept[:: max(1, len(cut) // 60)], strict=True):
        text = settings(grid.spec(int(row), model, workload), framework)
        assert (not any(words in text for words in INSTEAD)) == wanted, text


def test_what_a_framework_lacks_is_refused() -> None:
    def asked(framework: str, name: str, workload: WorkloadSpec = MIXED) -> None:
        model = catalog.model(name)
        had_by(framework, model, workload, candidates(model, 8, 16))  # type: ignore[arg-type]

    with pytest.raises(RequestError, match="torchtitan has no gpt"):
        asked("torchtitan", "gpt3-13b")
    with pytest.raises(RequestError, match="Megatron-LM has no xlnet"):
        asked("megatron", "xlnet-large")
    with pytest.raises(RequestError, match="torchtitan has no lion"):
        asked("torchtitan", "llama3-8b", MIXED.model_copy(update={"optimizer": "lion"}))
    with pytest.raises(RequestError, match="there is no framework 'jax'; there are megatron, torchtitan, deepspeed"):
        asked("jax", "llama3-8b")


def test_a_training_takes_days_device_hours_money_and_energy() -> None:
    bill = Bill(tokens=86_400e6, devices=100, tokens_per_second=1e6, price=2.0, watts=1000.0)
    assert (bill.days, bill.device_hours, bill.money, bill.megawatt_hours) == (1.0, 2400.0, 4800.0, 2.4)
    assert bill.text() == (
        "8.64e+10 tokens with the first take 1.0 days, 2,400 device-hours, 4,800 at 2 an hour, 2.4 MWh at 1000 W a device"
    )
    bare = replace(bill, price=None, watts=None)
    assert bare.as_json() == {"tokens": 86_400e6, "days": 1.0, "device_hours": 2400.0, "money": None, "megawatt_hours": None}
    assert bare.text().endswith("1.0 days, 2,400 device-hours")
    for name in ("tokens", "price", "watts"):
        with pytest.raises(RequestError, match=f"{name}=-1 must be positive and finite"):
            replace(bill, **{name: -1.0})
