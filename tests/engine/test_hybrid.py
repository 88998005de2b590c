"""Hybrid sharding: ZeRO within groups of neighbours along dp, and replicas of the shards across the groups."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from engine import catalog
from engine.api import predict
from engine.devices import DEVICES
from engine.export.settings import Framework, settings
from engine.imports import read
from engine.launch.recording.client import with_ledgers
from engine.measure.parity import PARITY_LIMIT
from engine.planner.search import search
from engine.spec import LayoutSpec, RequestError, RunSpec, WorkloadSpec
from engine.tables import memory_errors, traffic_differences
from engine.topology import Mesh
from tests.runs import Runs


def spec(layout: dict[str, Any], family: str = "gpt", **workload: Any) -> RunSpec:
    return RunSpec(
        model=catalog.model(f"{family}-tiny"),
        layout=LayoutSpec.model_validate({"zero_replicas": 2} | layout),
        workload=WorkloadSpec.model_validate({"steps": 2, "microbatches": 3} | workload),
        parity=True,
    )


# Each stage, with the other axes, a split backward whose gradients come late, and a number of ranks that does not divide buckets.
SPECS = (
    spec({"dp": 6, "zero": 1, "zero_replicas": 3, "recompute": "full"}, precision="bf16", accumulate="bf16"),
    spec({"dp": 6, "zero": 3}),
    spec({"dp": 4, "tp": 2, "zero": 3, "sequence_parallel": True}),
    spec({"dp": 4, "pp": 2, "zero": 2, "schedule": "zb-h1"}, microbatches=5),
    spec({"dp": 2, "cp": 2, "pp": 2, "zero": 3, "schedule": "dualpipe-v", "chunks": 2}, "llama", microbatches=6),
)


def _name(one: RunSpec) -> str:
    return f"{one.layout.code}-zero{one.layout.zero}x{one.layout.zero_replicas}-{one.layout.schedule}"


@pytest.mark.parametrize("one", SPECS, ids=_name)
def test_a_run_has_the_gradients_of_the_whole_model_and_the_predicted_bytes_and_calls(runs: Runs, one: RunSpec) -> None:
    result = runs.result(one)
    if one.workload.precision == "fp32":
        assert result.summary["parity_max_rel"] <= PARITY_LIMIT
        assert result.summary["loss_max_abs"] <= PARITY_LIMIT
    formula = with_ledgers(lambda: predict(one))
    assert (memory_errors(result, formula) == 0).all()
    assert traffic_differences(result, formula).empty


def test_groups_are_neighbours_and_replicas_are_as_far_apart_as_a_group_is_large() -> None:
    mesh = Mesh({"dp": 4, "cp": 2, "tp": 2})
    assert mesh.shard_group(5, 2) == (1, 3, 5, 7)
    assert mesh.shard_replicas(5, 2) == (5, 13)


@pytest.mark.parametrize(
    ("layout", "said"),
    [
        ({"dp": 4}, "and zero=0 shards nothing; zero=1, 2 or 3 fits, or zero_replicas=1"),
        ({}, "zero_replicas=2 must cut dp × cp = 1 into equal groups of at least 2 ranks; 1 fits"),
        ({"dp": 6, "zero": 1, "zero_replicas": 4}, "must cut dp × cp = 6 into equal groups of at least 2 ranks; 1, 2 and 3 fits"),
        ({"dp": 2, "zero": 3}, "zero_replicas=2 must cut dp × cp = 2 into equal groups of at least 2 ranks; 1 fits"),
    ],
)
def test_what_does_not_fit_is_refused_with_what_fits(layout: dict[str, Any], said: str) -> None:
    with pytest.raises(RequestError, match=said):
        spec(layout)


@pytest.mark.parametrize(
    ("to", "ending", "zero", "said"),
    [
        ("megatron", "sh", 1, "--num-distributed-optimizer-instances 2"),
        ("megatron", "sh", 3, "--num-distributed-optimizer-instances 2"),
        ("torchtitan", "toml", 3, "data_parallel_replicate_degree = 2\ndata_parallel_shard_degree = 4"),
        ("deepspeed", "json", 3, '"mics_shard_size": 4'),
    ],
)
def test_an_export_says_it_and_is_read_back(to: Framework, ending: str, zero: int, said: str) -> None:
    layout = LayoutSpec(dp=8, zero=zero, zero_replicas=2)
    written = settings(RunSpec(model=catalog.model("llama3-8b"), layout=layout), to)
    assert said in written
    assert read(written.encode(), f"file.{ending}").layout == layout


def test_where_deepspeed_has_no_such_groups_its_file_says_so() -> None:
    written = settings(RunSpec(layout=LayoutSpec(dp=8, zero=1, zero_replicas=2)), "deepspeed")
    assert "its hybrid sharding, MiCS, is of ZeRO 3 alone" in written


def test_the_planner_offers_it_where_nodes_are_slow_apart_and_it_is_faster_than_all_of_dp() -> None:
    """A node's devices shard; gathers stay in the node, and the plan says so in a column."""
    plan = search(catalog.model("llama3-8b"), 32, DEVICES["a100-80gb"], 64, simulate_best=0)
    table = plan.layouts
    own = table[table["zero_replicas"] > 1]
    assert len(own)
    assert (own["dp"] // own["zero_replicas"] * own["tp"] == 8).all()
    same = ["layout", "schedule", "chunks", "microbatch_size", "zero", "sequence_parallel", "recompute", "split"]
    beside = own.merge(table[table["zero_replicas"] == 1], on=same, suffixes=("", "_all"))
    assert len(beside) == len(own)
    assert (beside["step_s"] < beside["step_s_all"]).all()
    assert (beside["memory_bytes"] > beside["memory_bytes_all"]).all()
    row = int(np.flatnonzero(table["zero_replicas"] > 1)[0])
    assert plan.spec(row).layout.zero_replicas == table["zero_replicas"].iloc[row]
