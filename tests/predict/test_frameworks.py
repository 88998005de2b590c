"""A search for the layouts that one framework runs as they are, and what a training takes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from engine import catalog
from engine.devices import device
from engine.export import settings
from engine.optimizer import Framework
from engine.predict.planner.bill import Bill
from engine.predict.planner.search import MIXED, search
from engine.spec import RequestError

# What an export says where it sets up something else than the layout.
INSTEAD = (
    "becomes", "runs instead", "is the nearest", "no pipeline", "no replicas", "has none", "autocast", "its sequence parallelism",
    "sequence parallel too", "Does not",
)  # fmt: skip


@pytest.mark.parametrize(
    ("framework", "model", "batch"),
    [
        ("megatron", "gpt3-13b", 128),
        ("megatron", "transformer-big", 64),
        ("torchtitan", "llama3-8b", 64),
        ("deepspeed", "gpt3-6.7b", 64),
    ],
)
def test_a_framework_gets_the_layouts_that_it_runs_as_they_are(framework: Framework, model: str, batch: int) -> None:
    whole = search(catalog.model(model), 16, device("h100-80gb"), batch, simulate_best=2)
    plan = search(catalog.model(model), 16, device("h100-80gb"), batch, only=framework, simulate_best=2)
    assert 0 < len(plan.grid) < len(whole.grid)
    random = np.random.default_rng(0)
    for row in random.choice(len(plan.grid), 100, replace=False):
        text = settings(plan.spec(int(row)), framework)
        assert not [words for words in INSTEAD if words in text], text


@pytest.mark.parametrize(("framework", "model", "batch"), [("megatron", "gpt3-13b", 128), ("torchtitan", "llama3-8b", 64)])
def test_what_is_left_out_it_does_not_run_as_it_is(framework: Framework, model: str, batch: int) -> None:
    whole = search(catalog.model(model), 16, device("h100-80gb"), batch, simulate_best=2)
    kept = search(catalog.model(model), 16, device("h100-80gb"), batch, only=framework, simulate_best=2)
    left = {kept.spec(row) for row in range(len(kept.grid))}
    random = np.random.default_rng(0)
    dropped = [spec for row in random.choice(len(whole.grid), 300, replace=False) if (spec := whole.spec(int(row))) not in left]
    assert dropped
    for spec in dropped:
        text = settings(spec, framework)
        assert any(words in text for words in (*INSTEAD, "stands for ZeRO")), text


def test_what_a_framework_lacks_is_refused() -> None:
    h100 = device("h100-80gb")
    with pytest.raises(RequestError, match="torchtitan has no gpt"):
        search(catalog.model("gpt3-13b"), 16, h100, 64, only="torchtitan")
    with pytest.raises(RequestError, match="Megatron-LM has no xlnet"):
        search(catalog.model("xlnet-large"), 16, h100, 64, only="megatron")
    with pytest.raises(RequestError, match="torchtitan has no lion"):
        search(catalog.model("llama3-8b"), 16, h100, 64, MIXED.model_copy(update={"optimizer": "lion"}), only="torchtitan")
    with pytest.raises(RequestError, match="there is no framework 'jax'; there are megatron, torchtitan, deepspeed"):
        search(catalog.model("llama3-8b"), 16, h100, 64, only="jax")  # type: ignore[arg-type]


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
