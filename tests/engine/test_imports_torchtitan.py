"""What a job file of torchtitan has, lacks or leaves to the machine."""

from __future__ import annotations

import pytest

from engine import catalog, imports
from engine.export import settings
from engine.spec import LayoutSpec, RequestError, RunSpec, WorkloadSpec

TOML = settings(
    RunSpec(
        model=catalog.model("llama3-8b"), layout=LayoutSpec(dp=8, zero=3), workload=WorkloadSpec(precision="bf16", microbatches=1)
    ),
    "torchtitan",
)


def read(text: str) -> imports.Imported:
    return imports.read(text.encode(), "file.toml")


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ('"llama3"', '"qwen3"', "torchtitan's model qwen3 is not known here"),
        ('"8B"', '"9B"', "the flavor 9B is in torchtitan's code; 8B, 70B, 405B are known"),
        ('"8B"', f'"{"A" * 5_000}"', "A… is in torchtitan's code; 8B, 70B, 405B are known"),
        ("tensor_parallel_degree = 1", "tensor_parallel_degree = true", "tensor_parallel_degree=true must be a whole number"),
        ("[debug]", "[debug", "file.toml is not TOML"),
        ("[debug]", f"a={'[' * 5_000}\n[debug]", "file.toml is not TOML"),
        ("[debug]", f"a={'1' * 5_000}\n[debug]", "file.toml is not TOML: Exceeds the limit"),
        ("[debug]", f"{'a.' * 5_000}a=1\n[debug]", "file.toml: a key has more than 64 parts"),
        ("[debug]", f"#{'a' * 70_000}\n[debug]", "file.toml has 7"),
    ],
)
def test_a_job_file_that_is_not_understood_is_refused_in_one_sentence(old: str, new: str, told: str) -> None:
    assert old in TOML
    with pytest.raises(RequestError, match=told.replace("[", r"\[")):
        read(TOML.replace(old, new))


def test_what_a_job_file_leaves_to_the_machine_is_named() -> None:
    changed = TOML.replace("shard_degree = 8", "shard_degree = -1").replace(
        'mode = "none"', 'mode = "selective"\nselective_ac_option = "op"'
    )
    changed = changed.replace("global_batch_size", "#").replace("replicate_degree = 1", "replicate_degree = 2")
    found = read(changed)
    assert found.layout == LayoutSpec(dp=2)
    assert found.workload is not None
    assert found.workload.precision == "bf16"
    assert [str(remark) for remark in found.remarks] == [
        "data_parallel_shard_degree=-1 depends on the number of ranks, so dp is 2 and nothing is sharded",
        "activation_checkpoint.mode=selective is left out: nothing is computed again",
    ]


def test_what_a_job_file_lacks_has_torchtitans_usual_values() -> None:
    found = read('[model]\nname = "llama3"\nflavor = "8B"\n[parallelism]\npipeline_parallel_degree = 4\n')
    assert found.model is not None
    assert found.model.seq == 2048
    assert found.layout == LayoutSpec(pp=4, split=(8, 9, 8, 7), recompute="full", recompute_every=2), (
        "embedding and head count as a layer each"
    )
    assert found.workload == WorkloadSpec(microbatch_size=1, microbatches=8, learning_rate=8e-4, precision="bf16")
    assert [str(remark)[:40] for remark in found.remarks] == ["data_parallel_shard_degree=-1 depends on"]


@pytest.mark.parametrize(("tp", "precision", "told"), [(1, "bf16", "is autocast over fp32"), (2, "fp32", "has fp32 beside tp")])
def test_without_sharding_torchtitan_keeps_parameters_in_fp32(tp: int, precision: str, told: str) -> None:
    changed = TOML.replace("shard_degree = 8", "shard_degree = 1").replace(
        "tensor_parallel_degree = 1", f"tensor_parallel_degree = {tp}"
    )
    found = read(changed.replace("global_batch_size", "#"))
    assert found.workload is not None
    assert found.workload.precision == precision
    assert told in str(found.remarks[0])


def test_a_split_that_torchtitan_has_not_is_refused() -> None:
    less = "pipeline_parallel_first_stage_less_layers = 20"
    changed = TOML.replace("pipeline_parallel_degree = 1", f"pipeline_parallel_degree = 4\n{less}")
    with pytest.raises(RequestError, match="torchtitan cannot cut 32 layers into 4 chunks"):
        read(changed)


def test_unknown_settings_of_a_job_file_are_named() -> None:
    changed = TOML.replace("[debug]", "[quantize]\nlinear = true\n\n[debug]\nmoe_force_load_balance = true")
    told = [str(remark) for remark in read(changed).remarks]
    assert told == [
        "debug.moe_force_load_balance=true is not understood, and left out",
        "[quantize] is not understood, and left out",
    ]
