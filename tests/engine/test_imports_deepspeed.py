"""Configurations of DeepSpeed as layout and workload. That exports come back is in `test_imports`."""

from __future__ import annotations

import json
from typing import Any

import pytest

from engine import imports
from engine.export import settings
from engine.spec import LayoutSpec, RequestError, RunSpec


def read(entries: dict[str, Any]) -> imports.Imported:
    return imports.read(json.dumps(entries).encode(), "ds.json")


def exported(spec: RunSpec) -> dict[str, Any]:
    return json.loads(settings(spec, "deepspeed"))


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"train_batch_size": 7}, "train_batch_size=7 is not a multiple of a replica's 8 sequences"),
        ({"optimizer": {"type": "Muon"}}, "there is no optimizer muon here; adamw"),
        ({"bf16": {"enabled": True}, "data_types": {"grad_accum_dtype": "int8"}}, "grad_accum_dtype=int8 is not supported here"),
        ({"zero_optimization": 3}, "zero_optimization=3 must be an object"),
        ({"train_micro_batch_size_per_gpu": "auto"}, "train_micro_batch_size_per_gpu=auto must be a whole number"),
    ],
)
def test_a_configuration_of_deepspeed_that_is_not_understood_is_refused(changed: dict[str, Any], told: str) -> None:
    entries = exported(RunSpec())
    with pytest.raises(RequestError, match=told):
        read(entries | changed)


@pytest.mark.parametrize(("said", "accumulate"), [(None, "bf16"), ("fp32", "fp32"), ("float32", "fp32"), ("bf16", "bf16")])
def test_deepspeed_accumulates_in_the_models_precision_unless_told(said: str | None, accumulate: str) -> None:
    entries = exported(RunSpec())
    found = read(entries | {"bf16": {"enabled": True}, "data_types": {"grad_accum_dtype": said}}).workload
    assert found is not None
    assert found.accumulate == accumulate


def test_a_batch_of_deepspeed_without_accumulation_steps_does_not_say_how_many_ranks() -> None:
    found = read({"train_batch_size": 32, "train_micro_batch_size_per_gpu": 4})
    assert found.workload is not None
    assert (found.layout, found.workload.microbatches) == (LayoutSpec(), 8)
    assert [str(remark) for remark in found.remarks] == ["the number of ranks is not in the file, so dp is 1"]


def test_what_deepspeed_has_and_a_request_has_not_is_named() -> None:
    entries = exported(RunSpec(layout=LayoutSpec(dp=2, zero=3)))
    entries["zero_optimization"]["offload_param"] = {"device": "cpu"}
    entries["zero_optimization"] |= {"zero_hpz_partition_size": 8, "zero_quantized_weights": True, "overlap_comm": True}
    remarks = read(entries | {"moe": {"enabled": True}}).remarks
    assert [str(remark) for remark in remarks] == [
        "zero_hpz_partition_size=8 is left out: no second copy of parameters is kept within a node here",
        "offload_param is left out: all memory here is the device's",
        "zero_optimization.zero_quantized_weights=true is not understood, and left out",
        "moe={'enabled': True} is not understood, and left out",
    ]


@pytest.mark.parametrize(
    ("stage", "group", "zero", "told"),
    [
        (2, 2, 2, "mics_shard_size=2 is left out: its groups are of ZeRO 3"),
        (3, 1, 0, "mics_shard_size=1 makes groups of one rank"),
    ],
)
def test_groups_that_deepspeed_does_not_shard_in_are_named(stage: int, group: int, zero: int, told: str) -> None:
    entries = exported(RunSpec(layout=LayoutSpec(dp=4, zero=stage)))
    entries["zero_optimization"]["mics_shard_size"] = group
    found = read(entries)
    assert found.layout == LayoutSpec(dp=4, zero=zero)
    assert told in str(found.remarks[0])
