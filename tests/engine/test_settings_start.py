"""Exported settings keep the rules of the program that they are for, so that it starts with them."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest

from engine import catalog
from engine.export import settings
from engine.export.megatron import VERSION
from engine.spec import LayoutSpec, RunSpec, WorkloadSpec
from tests.engine import torchtitan_rules
from tests.engine.exported import ASKED, best_plans, drawn
from tests.engine.megatron_rules import RefusedError, broken, read

# ----------------------------------------------------------------------------------------------------------- Megatron-LM


def megatron_starts(spec: RunSpec) -> None:
    """The script breaks no rule, and its ranks, stages and microbatches are those of the spec."""
    layout = spec.layout
    text = settings(spec, "megatron")
    script = read(text)
    assert not [*broken(script)], text
    assert (script.dp, script.tp, script.pp) == (layout.dp, layout.tp, layout.pp)
    assert script.microbatches == spec.workload.microbatches
    if not spec.model.parts.encoder:
        assert sum(script.stages) == spec.model.layers
        if script.chunks > 1:
            assert script.stages == layout.chunk_layers(spec.model.layers)
        else:
            assert script.stages == layout.stage_layers(spec.model.layers)


@pytest.mark.parametrize("name", ASKED)
def test_megatron_starts_with_each_of_the_ten_best_plans(name: str) -> None:
    for spec in best_plans(name):
        megatron_starts(spec)


def test_megatron_starts_with_any_spec_or_the_script_says_why_not() -> None:
    refused = 0
    for spec in drawn():
        if spec.model.parts.encoder and spec.layout.pp > 1:
            refused += 1
            sentence = f"Megatron-LM {VERSION} has no pipeline for T5, and this layout has {spec.layout.pp} stages\n"
            with pytest.raises(RefusedError, match=sentence):
                read(settings(spec, "megatron"))
        else:
            megatron_starts(spec)
    assert refused


def test_a_group_of_microbatches_is_given_where_megatrons_own_does_not_fit() -> None:
    model = catalog.model("gpt3-13b")
    interleaved = LayoutSpec(pp=4, chunks=2, schedule="interleaved")
    for microbatches, group, chunks in ((8, None, 2), (6, 6, 2), (10, 5, 2), (4, None, 2), (2, None, 1)):
        spec = RunSpec(model=model, layout=interleaved, workload=WorkloadSpec(microbatches=microbatches))
        script = read(settings(spec, "megatron"))
        assert script.given.microbatch_group_size_per_virtual_pipeline_stage == group
        assert script.chunks == chunks


@pytest.mark.parametrize(
    ("wrong", "right", "rule"),
    [
        ("", "export CUDA_DEVICE_MAX_CONNECTIONS=1", "tp > 1 has CUDA_DEVICE_MAX_CONNECTIONS=1"),
        ("", "  --microbatch-group-size-per-virtual-pipeline-stage 6 \\\n", "interleaving: the last group is whole"),
        ("--seed 0", "--seed 1", "the seed is positive"),
        ("--num-layers 42", "--num-layers 40", "pp divides the layers"),
        ("--global-batch-size 13", "--global-batch-size 12", "microbatch size × dp divides the global batch"),
        ("--recompute-granularity full", "--bf16", "full recompute, and it alone, has a method"),
        ("--ckpt-format fsdp_dtensor", "--bf16", "its FSDP, and it alone, has checkpoints"),
    ],
)
def test_a_script_that_megatron_would_refuse_breaks_a_rule(wrong: str, right: str, rule: str) -> None:
    layout = LayoutSpec(tp=2, pp=4, chunks=2, schedule="interleaved")
    workload = WorkloadSpec(microbatches=6, precision="bf16")
    text = settings(RunSpec(model=catalog.model("gpt3-13b"), layout=layout, workload=workload), "megatron")
    assert right in text
    assert any(rule in found for found in broken(read(text.replace(right, wrong))))


def test_a_large_model_learns_at_the_rate_of_its_size_unless_one_is_given() -> None:
    rates = {"gpt-tiny": 3e-3, "gpt2-124m": 6e-4, "gpt2-1.5b": 2e-4, "llama3-8b": 1.2e-4, "gpt3-13b": 1e-4, "gpt3-175b": 6e-5}
    for name, rate in rates.items():
        assert read(settings(RunSpec(model=catalog.model(name)), "megatron")).given.lr == rate
    given = RunSpec(model=catalog.model("gpt3-175b"), workload=WorkloadSpec(learning_rate=1e-3))
    assert read(settings(given, "megatron")).given.lr == 1e-3


# ------------------------------------------------------------------------------------------------------------ torchtitan


def torchtitan_starts(spec: RunSpec) -> None:
    """The job file breaks no rule, and its ranks, stages and microbatches are those of the spec."""
    layout = spec.layout
    text = settings(spec, "torchtitan")
    job = torchtitan_rules.read(text, layout.ranks, spec.model.layers)
    found = [*torchtitan_rules.broken(job)]
    if spec.model.seq % (2 * layout.tp):
        assert f"# Does not start: it cuts a sequence into 2 × tp = {2 * layout.tp} parts" in text
        assert [rule.split(" (")[0] for rule in found] == ["2 × tp divides the length"]
    else:
        assert not found, text
    degrees = (job.replicas, job.tensor_parallel_degree, job.pipeline_parallel_degree)
    assert degrees == (layout.dp, layout.tp, layout.pp)
    if layout.pp > 1:
        assert job.chunk_layers == layout.chunk_layers(spec.model.layers)
        assert job.microbatches == spec.workload.microbatches


@pytest.mark.parametrize("name", ASKED)
def test_torchtitan_starts_with_each_of_the_ten_best_plans(name: str) -> None:
    for spec in best_plans(name):
        torchtitan_starts(spec)


def test_torchtitan_starts_with_any_spec_or_the_file_says_why_not() -> None:
    for spec in drawn():
        torchtitan_starts(spec)


def test_torchtitan_is_told_the_modules_of_each_chunk_where_its_own_split_differs() -> None:
    llama = RunSpec(model=catalog.model("llama3-405b"), layout=LayoutSpec(tp=8, pp=8), workload=WorkloadSpec(microbatches=8))
    text = settings(llama, "torchtitan")
    assert "module_fqns_per_model_part" not in text
    assert torchtitan_rules.read(text, 64, 126).chunk_layers == (16,) * 6 + (15,) * 2
    uneven = llama.model_copy(update={"layout": LayoutSpec(tp=8, pp=8, split=(15,) + (16,) * 6 + (15,))})
    parts = torchtitan_rules.read(settings(uneven, "torchtitan"), 64, 126).module_fqns_per_model_part
    assert parts[0] == ["tok_embeddings", *(f"layers.{n}" for n in range(15))]
    assert parts[-1] == [*(f"layers.{n}" for n in range(111, 126)), "norm", "output"]
    three = LayoutSpec(pp=16, chunks=3, schedule="interleaved")
    torchtitan_starts(RunSpec(model=catalog.model("llama3-70b"), layout=three, workload=WorkloadSpec(microbatches=16)))
    two = LayoutSpec(pp=16, chunks=2, schedule="interleaved")
    torchtitan_starts(RunSpec(model=catalog.model("llama3-70b"), layout=two, workload=WorkloadSpec(microbatches=16)))


@pytest.mark.parametrize(
    ("wrong", "right", "rule"),
    [
        ("[training]\nseed = 0", "[training]", "there is no seed in [training]"),
        ("data_parallel_replicate_degree = 2", "data_parallel_replicate_degree = 1", "the degrees multiply to the world"),
        ("pipeline_parallel_microbatch_size = 5", "pipeline_parallel_microbatch_size = 2", "microbatches divide the local batch"),
        ("DualPipeV", "1F1B", "1F1B and DualPipeV have as many microbatches as chunks"),
        ("last_stage_less_layers = 32", "last_stage_less_layers = 0", "the chunks have all layers"),
    ],
)
def test_a_job_that_torchtitan_would_refuse_breaks_a_rule(wrong: str, right: str, rule: str) -> None:
    layout = LayoutSpec(dp=2, tp=2, pp=4, zero=3, split=(8, 8, 8, 8))
    text = settings(RunSpec(model=catalog.model("llama3-8b"), layout=layout), "torchtitan")
    assert right in text
    changed = text.replace(right, wrong)
    assert any(found.startswith(rule) for found in torchtitan_rules.broken(torchtitan_rules.read(changed, 16, 32)))


def test_torchtitan_has_the_flavors_of_llama_3_alone_and_is_told_the_others() -> None:
    for name, flavor in {"llama3-8b": "8B", "llama3-70b": "70B", "llama3-405b": "405B"}.items():
        text = settings(RunSpec(model=catalog.model(name)), "torchtitan")
        assert f'flavor = "{flavor}"' in text
        assert "# Does not start" not in text
    text = settings(RunSpec(model=catalog.model("llama-small")), "torchtitan")
    entry = (
        '"8x256": TransformerModelArgs(dim=256, n_layers=8, n_heads=8, n_kv_heads=4, vocab_size=256, multiple_of=704, '
        "rope_theta=500000),"
    )
    assert entry in text
    assert 'flavor = "8x256"' in text


# ------------------------------------------------------------------------------------------------------------- DeepSpeed


def deepspeed_starts(spec: RunSpec) -> None:
    """The rules of 0.19.8, in our own words, with their sources below `deepspeed/runtime`."""
    layout = spec.layout
    config = json.loads(settings(spec, "deepspeed"))
    stage = config["zero_optimization"]["stage"]
    assert type(stage) is int
    batch = config["train_micro_batch_size_per_gpu"] * config["gradient_accumulation_steps"]
    ranks = (
        layout.ranks if layout.pp == 1 else layout.dp
    )  # config.py:602: without a pipeline all ranks count, those of AutoTP too
    assert config.get("train_batch_size", batch * ranks) == batch * ranks
    assert batch * layout.dp == spec.workload.microbatch_size * spec.workload.microbatches * layout.dp
    assert stage < 2 or layout.pp == 1  # pipe/engine.py:76
    if config["bf16"]["enabled"]:
        assert stage > 0  # engine.py:2323: no mix of bf16 and sums in fp32 without ZeRO, and 2320: no fp32 masters
    else:
        assert config["data_types"]["grad_accum_dtype"] == "fp32"  # engine.py:2323
    if stage and config["optimizer"]["type"] == "SGD":
        assert config["zero_allow_untested_optimizer"]  # engine.py:2301, zero/utils.py:45
    if layout.schedule == "dualpipe-v":
        assert config["gradient_accumulation_steps"] >= 2 * layout.pp  # pipe/dualpipev.py:102


@pytest.mark.parametrize("name", ASKED)
def test_deepspeed_starts_with_each_of_the_ten_best_plans(name: str) -> None:
    for spec in best_plans(name):
        deepspeed_starts(spec)


def test_deepspeed_starts_with_any_spec() -> None:
    for spec in drawn():
        deepspeed_starts(spec)


# ----------------------------------------------------------------------------------------------------------------- Slurm

# What a cluster has: the list of nodes; a command on each node; torchrun, which here prints what it was started with.
_CLUSTER = """
scontrol() { echo node7; echo node8; }
torchrun() { echo "$SLURM_NODEID" "$@"; }
export -f torchrun
srun() { shift; for SLURM_NODEID in $(seq 0 $((SLURM_NNODES - 1))); do export SLURM_NODEID; "$@"; done; }
"""


def options(text: str) -> dict[str, str]:
    """Its lines for sbatch, which end at the first command."""
    head = text.split("\nset ")[0]
    return dict(re.findall(r"^#SBATCH --([\w-]+)=(\S+)$", head, re.MULTILINE))


def test_the_script_for_slurm_starts_every_node_with_the_spec(tmp_path: Path) -> None:
    layout = LayoutSpec(dp=4, tp=2, pp=2, zero=1)
    workload = WorkloadSpec(time_limit=4000.0, text='it\'s "mine".txt')
    spec = RunSpec(model=catalog.model("gpt-small"), layout=layout, workload=workload)
    text = settings(spec, "slurm")
    asked = options(text)
    assert (asked["nodes"], asked["ntasks-per-node"], asked["gpus-per-node"], asked["time"]) == ("2", "1", "8", "01:17:00")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "activate").write_text("")
    environment = {"VENV": str(tmp_path), "SLURM_JOB_ID": "5", "SLURM_NNODES": "2", "SLURM_JOB_NODELIST": "node[7-8]"}
    ran = subprocess.run(
        ["bash", "-c", _CLUSTER + text], cwd=tmp_path, env=environment | {"PATH": "/usr/bin:/bin"}, capture_output=True,
        text=True, timeout=60, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    file = tmp_path / "shardscope-5.json"
    assert RunSpec.read_json(file.read_bytes()) == spec
    assert ran.stdout.splitlines() == [
        f"{rank} --nnodes 2 --nproc-per-node 8 --node-rank {rank} --master-addr node7 --master-port 29500 "
        f"-m engine.launch.cluster --spec {file} --out runs"
        for rank in range(2)
    ]


@pytest.mark.parametrize(("code", "nodes", "each"), [("dp8.tp2.pp4", 8, 8), ("dp3.tp2.pp1", 1, 6), ("dp3.tp2.pp2", 3, 4)])
def test_slurm_is_asked_for_as_many_ranks_as_there_are(code: str, nodes: int, each: int) -> None:
    asked = options(settings(RunSpec(layout=LayoutSpec(**LayoutSpec.degrees(code))), "slurm"))
    assert (int(asked["nodes"]), int(asked["gpus-per-node"])) == (nodes, each)
