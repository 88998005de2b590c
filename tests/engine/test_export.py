"""Exports: a trace in its format, tables as CSV, and settings of other frameworks for the same layout."""

from __future__ import annotations

import io
import itertools
import json
import shlex
import tomllib
import zipfile
from collections import defaultdict
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from engine import catalog, store
from engine.__main__ import main
from engine.export import FRAMEWORKS, Framework, csv_zip, perfetto, settings
from engine.families import FAMILIES, FamilyName
from engine.schedule import SCHEDULES
from engine.spec import SCHEDULE_FACTS, LayoutSpec, RequestError, RunSpec, ScheduleName, Sentence, WorkloadSpec
from engine.tables import CATEGORIES, RunResult
from tests.runs import Runs, small

SPEC = small("dp2.tp2.pp2", microbatches=3)


@pytest.fixture(scope="module")
def result(runs: Runs) -> RunResult:
    return runs.result(SPEC)


@pytest.fixture(scope="module")
def trace(result: RunResult) -> list[dict[str, Any]]:
    read = json.loads(perfetto(result))
    assert set(read) == {"traceEvents", "displayTimeUnit", "otherData"}
    return read["traceEvents"]


def ns(us: float) -> int:
    """Microseconds as nanoseconds, as a reader that truncates has them."""
    return int(us * 1000)


# ------------------------------------------------------------------------------------------------------------- the trace


def test_the_trace_is_valid_in_its_format(trace: list[dict[str, Any]]) -> None:
    assert {event["ph"] for event in trace} == {"M", "X", "C"}
    for event in trace:
        assert event["pid"] > 0  # 0 is the idle process
        assert event["tid"] > 0
        assert isinstance(event["name"], str)
        if event["ph"] != "M":
            assert event["ts"] >= 0
            assert event.get("dur", 0) >= 0
    times = [event["ts"] for event in trace if event["ph"] != "M"]
    assert times == sorted(times)


def test_every_rank_is_a_process_and_every_track_has_a_name(trace: list[dict[str, Any]]) -> None:
    processes = {e["pid"]: e["args"]["name"] for e in trace if e["name"] == "process_name"}
    assert len(processes) == 8
    assert processes[1] == "rank 0 (pp 0, dp 0, tp 0)"
    assert processes[8] == "rank 7 (pp 1, dp 1, tp 1)"
    named = {(e["pid"], e["tid"]) for e in trace if e["name"] == "thread_name"}
    assert {(e["pid"], e["tid"]) for e in trace if e["ph"] == "X"} <= named
    # Viewers may identify threads by number alone, and treat one with its process's number as the main thread.
    assert len({tid for _, tid in named}) == len(named)
    assert all(tid not in processes for _, tid in named)
    for pid in processes:
        tracks = [
            e["args"]["name"] for e in sorted(trace, key=lambda e: e["tid"]) if e["name"] == "thread_name" and e["pid"] == pid
        ]
        assert tracks[:2] == ["compute", "comm"]
        assert tracks[-1] == "memory's step"


def test_nothing_overlaps_on_a_track_to_the_nanosecond(trace: list[dict[str, Any]]) -> None:
    tracks = defaultdict(list)
    for event in trace:
        if event["ph"] == "X":
            tracks[event["pid"], event["tid"]].append((ns(event["ts"]), ns(event["dur"])))
    assert len(tracks) >= 8 * 3
    for track in tracks.values():
        for (start, length), (following, _) in itertools.pairwise(track):
            assert start + length <= following


def test_every_span_is_in_the_trace_to_the_nanosecond(result: RunResult, trace: list[dict[str, Any]]) -> None:
    spans = result.tables["spans"]
    told = sorted(zip(spans["rank"], spans["lane"], spans["start_ns"], spans["end_ns"] - spans["start_ns"], strict=True))
    drawn = [e for e in trace if e["ph"] == "X" and e["cat"] in ("compute", "comm")]
    assert sorted((e["pid"] - 1, e["cat"], ns(e["ts"]), ns(e["dur"])) for e in drawn) == told
    forward = [e for e in drawn if e["name"] == "F2"]
    assert len(forward) == 8
    (step,) = set(spans["step"])  # the median of those that were timed
    assert all(e["args"]["microbatch"] == 2 and e["args"]["step"] == step for e in forward)


def test_a_call_in_the_trace_has_bytes_only_if_they_are_known(result: RunResult, trace: list[dict[str, Any]]) -> None:
    traffic = result.tables["traffic"]
    for kind in ("send", "recv"):
        told = sum(e["args"]["payload_bytes"] for e in trace if e["ph"] == "X" and e["name"] == kind)
        assert told == traffic.loc[traffic["collective"] == kind, "payload_bytes"].sum()
    reduced = [e["args"] for e in trace if e["ph"] == "X" and e["name"] == "all_reduce"]
    stream = SPEC.workload.microbatch_size * SPEC.model.seq * SPEC.model.hidden * 4
    assert stream in {args.get("payload_bytes") for args in reduced}  # in a forward pass on the first stage, all are of one size
    assert any("payload_bytes" not in args for args in reduced)  # in a backward pass, tp's and dp's are not


def test_reductions_of_buckets_of_different_sizes_have_no_bytes(runs: Runs) -> None:
    """Their mean is an integer, but not the size of any bucket."""
    plain = small("dp2")
    result = runs.result(plain.model_copy(update={"layout": plain.layout.model_copy(update={"zero": 1})}))
    (gathered,) = result.tables["traffic"].query("rank == 0 and collective == 'all_gather'").itertuples()
    assert gathered.payload_bytes % gathered.calls == 0
    events = json.loads(perfetto(result))["traceEvents"]
    told = [event["args"] for event in events if event["ph"] == "X" and event["name"] == "all_gather"]
    assert len(told) == 2 * gathered.calls
    assert not any("payload_bytes" in args for args in told)


def test_the_counters_reach_each_ranks_peak_after_the_timed_step(result: RunResult, trace: list[dict[str, Any]]) -> None:
    peaks = result.tables["memory_peak"].groupby("rank")["bytes"].sum()
    counters = [e for e in trace if e["ph"] == "C"]
    assert {tuple(sorted(e["args"])) for e in counters} == {tuple(sorted(CATEGORIES))}
    for rank, peak in peaks.items():
        assert max(sum(e["args"].values()) for e in counters if e["pid"] == rank + 1) == peak
    assert min(ns(e["ts"]) for e in counters) > result.tables["spans"]["end_ns"].max()


# ------------------------------------------------------------------------------------------------------------ the tables


def test_the_csv_files_have_every_table_complete(result: RunResult) -> None:
    archive = zipfile.ZipFile(io.BytesIO(csv_zip(result)))
    assert set(archive.namelist()) == {"run.json", *(f"{name}.csv" for name in result.tables)}
    assert RunSpec.model_validate(json.loads(archive.read("run.json"))["spec"]) == SPEC
    for name, table in result.tables.items():
        read = pd.read_csv(archive.open(f"{name}.csv"), dtype={"group": "str"})
        pd.testing.assert_frame_equal(read, table, check_dtype=False)


# ---------------------------------------------------------------------------------------------------------- the settings


def spec_of(family: FamilyName = "gpt", schedule: ScheduleName = "1f1b", code: str = "dp2.tp2.pp2", **layout: Any) -> RunSpec:
    chunks = SCHEDULE_FACTS[schedule].least_chunks
    return RunSpec(
        model=catalog.model(f"{family}-tiny"),
        layout=LayoutSpec(**{**LayoutSpec.degrees(code), "schedule": schedule, "chunks": chunks, **layout}),
        workload=WorkloadSpec(microbatches=4, microbatch_size=3, steps=7),
    )


def megatron(spec: RunSpec) -> dict[str, str]:
    """The arguments by name; those without a value have an empty one."""
    text = settings(spec, "megatron").replace("\\\n", "")
    words = shlex.split(text[text.index("torchrun") :], comments=True)
    start = next(i for i, word in enumerate(words) if word.endswith(".py")) + 1
    found: dict[str, str] = {(name := ""): words[start - 1]}
    for word in words[start:]:
        if word.startswith("--"):
            assert word not in found
            found[name := word] = ""
        else:
            found[name] = f"{found[name]} {word}".strip()
    return found


def notes(text: str) -> str:
    return "\n".join(line for line in text.splitlines() if "Not the same" in line)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_framework_gets_the_same_ranks_and_the_same_batch(family: FamilyName, schedule: ScheduleName) -> None:
    spec = spec_of(family, schedule)
    layout, batch = spec.layout, 2 * 4 * 3
    given = megatron(spec)
    assert (int(given["--tensor-model-parallel-size"]), int(given["--pipeline-model-parallel-size"])) == (layout.tp, layout.pp)
    assert (int(given["--micro-batch-size"]), int(given["--global-batch-size"])) == (3, batch)
    job = tomllib.loads(settings(spec, "torchtitan"))
    degrees = [value for name, value in job["parallelism"].items() if name.endswith("_degree")]
    assert len(degrees) == 4
    assert degrees[0] * degrees[1] * degrees[2] * degrees[3] == layout.ranks
    assert (job["training"]["local_batch_size"], job["training"]["global_batch_size"]) == (4 * 3, batch)
    config = json.loads(settings(spec, "deepspeed"))
    product = config["train_micro_batch_size_per_gpu"] * config["gradient_accumulation_steps"] * layout.dp
    assert config["train_batch_size"] == product == batch


@pytest.mark.parametrize(("code", "nodes", "each"), [("dp8.tp2.pp4", 8, 8), ("dp3.tp2.pp1", 1, 6), ("dp3.tp2.pp2", 3, 4)])
def test_megatron_is_started_on_as_many_ranks_as_there_are(code: str, nodes: int, each: int) -> None:
    text = settings(spec_of(code=code), "megatron")
    assert f"torchrun --nnodes ${{NNODES:-{nodes}}} --nproc-per-node ${{GPUS_PER_NODE:-{each}}} " in text


def test_a_llama_has_the_settings_of_a_llama() -> None:
    given = megatron(RunSpec(model=catalog.model("llama3-70b"), layout=LayoutSpec(tp=8, pp=4, chunks=2, schedule="interleaved")))
    assert given[""] == "pretrain_gpt.py"
    assert (given["--num-layers"], given["--hidden-size"], given["--ffn-hidden-size"]) == ("80", "8192", "28672")
    assert (given["--num-attention-heads"], given["--num-query-groups"], given["--group-query-attention"]) == ("64", "8", "")
    assert (given["--normalization"], given["--position-embedding-type"]) == ("RMSNorm", "rope")
    assert {"--swiglu", "--disable-bias-linear", "--untie-embeddings-and-output-weights"} <= set(given)
    assert given["--num-layers-per-virtual-pipeline-stage"] == "10"
    gpt = megatron(spec_of())
    assert not {"--swiglu", "--group-query-attention", "--num-layers-per-virtual-pipeline-stage"} & set(gpt)
    job = tomllib.loads(settings(RunSpec(model=catalog.model("llama3-70b"), layout=LayoutSpec(tp=8)), "torchtitan"))
    assert job["model"] == {"name": "llama3", "flavor": "70B"}


def test_levers_are_exported() -> None:
    levers = spec_of(code="dp2.tp2.pp1", zero=1, sequence_parallel=True, recompute="full")
    bf16 = levers.model_copy(update={"workload": WorkloadSpec(microbatches=4, precision="bf16")})
    given = megatron(bf16)
    assert {"--use-distributed-optimizer", "--sequence-parallel", "--bf16", "--accumulate-allreduce-grads-in-fp32"} <= set(given)
    assert (given["--recompute-granularity"], given["--recompute-method"]) == ("full", "uniform")
    for code, some in (("pp2", {"recompute_layers": 1}), ("pp2", {"recompute_every": 2}), ("pp1", {"recompute_every": 3})):
        assert megatron(spec_of(code=code, recompute="full", **some))["--recompute-num-layers"] == "1", some
    stages = spec_of(schedule="zb-v", code="pp2", recompute="full", recompute_layers=1)
    assert megatron(stages)["--recompute-num-layers"] == "2", "it has 1F1B instead, and a stage is one chunk"
    parts = spec_of(recompute="mlp_act+layernorm+core_attn")
    assert megatron(parts)["--recompute-modules"] == "core_attn layernorm"
    assert "mlp_act is left out" in notes(settings(parts, "megatron"))
    assert "checkpoint around core_attn+layernorm+mlp_act" in settings(parts, "deepspeed")
    assert [megatron(spec)["--attention-backend"] for spec in (bf16, levers)] == ["flash", "unfused"]
    assert "--use-megatron-fsdp" not in given
    assert megatron(spec_of(code="dp2", zero=3))["--data-parallel-sharding-strategy"] == "optim_grads_params"
    job = tomllib.loads(settings(bf16, "torchtitan"))
    assert job["activation_checkpoint"]["mode"] == "full"
    assert job["training"]["mixed_precision_param"] == "bfloat16"
    config = json.loads(settings(bf16, "deepspeed"))
    assert (config["bf16"], config["zero_optimization"]) == ({"enabled": True}, {"stage": 1})
    for zero, kept in ((2, "never"), (3, "always")):
        sharded = tomllib.loads(settings(spec_of(code="dp2", zero=zero), "torchtitan"))["parallelism"]
        assert (sharded["data_parallel_shard_degree"], sharded["fsdp_reshard_after_forward"]) == (2, kept)
        assert json.loads(settings(spec_of(code="dp2", zero=zero), "deepspeed"))["zero_optimization"]["stage"] == zero


def test_an_uneven_split_is_exported() -> None:
    split = spec_of(code="dp1.tp1.pp2", split=(3, 1))
    assert megatron(split)["--pipeline-model-parallel-layout"] == "Ettt|tL"
    stages = tomllib.loads(settings(split, "torchtitan"))["parallelism"]
    assert stages["module_fqns_per_model_part"] == [
        ["tok_embeddings", "layers.0", "layers.1", "layers.2"], ["layers.3", "norm", "output"],
    ]  # fmt: skip
    assert "3,1 layers each" in settings(split, "deepspeed")


@pytest.mark.parametrize(
    ("to", "spec", "told"),
    [
        *(
            (to, RunSpec(workload=WorkloadSpec(loss_chunk=9)), "9 tokens at a time")
            for to in ("megatron", "torchtitan", "deepspeed")
        ),
        ("megatron", spec_of("xlnet"), "Megatron-LM has no xlnet"),
        ("megatron", spec_of(schedule="zb-v"), "Megatron-LM has no zb-v schedule; 1F1B runs instead"),
        ("megatron", spec_of(schedule="looped-bfs"), "has no looped-bfs schedule; interleaved 1F1B over 2 chunks a stage runs"),
        ("megatron", spec_of("transformer"), "has no pipeline for T5, and this layout has 2 stages"),
        (
            "megatron",
            spec_of("t5"),
            "its T5 divides scores by the root of a head's width, does not scale the output, and has GELU",
        ),
        (
            "megatron",
            RunSpec(model=catalog.model("gemma3-1b")),
            "it has one base of rotary positions for layers with and without",
        ),
        ("megatron", RunSpec(model=catalog.model("gemma2-9b")), "it has no placement=both, inner=geglu, scaled_embedding=true;"),
        ("megatron", RunSpec(model=catalog.model("falcon-7b")), "it has no parallel=one_norm; the nearest"),
        ("megatron", RunSpec(model=catalog.model("olmo2-7b")), "it has no placement=output, qk_norm=full;"),
        (
            "torchtitan",
            RunSpec(model=catalog.model("qwen3-8b")),
            "its Llama has no qk_norm=head; the parts of",
        ),
        ("torchtitan", spec_of("bert"), "torchtitan has no bert"),
        ("torchtitan", spec_of(zero=1), "ZeRO 1 becomes ZeRO 2"),
        ("torchtitan", spec_of(schedule="zb-h1"), "torchtitan has no zb-h1 schedule; 1F1B is the nearest"),
        ("deepspeed", spec_of(), "with a pipeline DeepSpeed has no tensor parallelism of its own; tp=2"),
        ("deepspeed", spec_of(zero=3), "ZeRO 3 becomes 1"),
        ("deepspeed", spec_of(schedule="dualpipe-v"), "DualPipeVModule(num_stages=2), 2,2 layers each; its order is DualPipeV"),
        ("deepspeed", spec_of(schedule="gpipe"), "DeepSpeed has no gpipe schedule"),
    ],
)
def test_what_a_framework_cannot_express_is_in_the_notes(to: Framework, spec: RunSpec, told: str) -> None:
    assert told in notes(settings(spec, to))


def test_a_complete_export_has_no_notes() -> None:
    in_bf16 = spec_of().model_copy(update={"workload": WorkloadSpec(microbatches=4, precision="bf16")})
    assert notes(settings(in_bf16, "megatron")) == ""
    llama = RunSpec(model=catalog.model("llama3-8b"), layout=LayoutSpec(dp=2, zero=3), workload={"loss_chunk": "whole"})
    assert notes(settings(llama, "torchtitan")) == ""


# ------------------------------------------------------------------------------------------------------ the command line


def test_the_command_writes_each_kind_of_file(
    result: RunResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    store.save(result, tmp_path / "runs" / "mine")
    for to, file in {"perfetto": "mine.perfetto.json", "csv": "mine.csv.zip", "zip": "mine.zip"}.items():
        assert main(["export", "mine", "--to", to]) == 0
        assert capsys.readouterr().out == f"{file}\n"
        assert (tmp_path / file).stat().st_size > 1000
    for framework in FRAMEWORKS:
        assert main(["export", "mine", "--to", framework]) == 0
        assert capsys.readouterr().out == settings(SPEC, framework)
    (tmp_path / "runs").rename(tmp_path / "elsewhere")
    for said in (["mine", "--runs", "elsewhere"], ["elsewhere/mine"]):
        assert main(["export", *said, "--to", "megatron"]) == 0
        assert capsys.readouterr().out == settings(SPEC, "megatron")
    (tmp_path / "spec.json").write_text(SPEC.model_dump_json())
    assert main(["export", "--spec", "spec.json", "--to", "deepspeed", "--out", "ds.json", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told == {"to": "deepspeed", "file": "ds.json", "bytes": (tmp_path / "ds.json").stat().st_size}
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "ds.json", "elsewhere", "mine.csv.zip", "mine.perfetto.json", "mine.zip", "spec.json",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ("mine --to html", "the HTML report is drawn by the pages, not by the engine; download it on the Runs page"),
        ("mine --to pdf", f"there is no export to 'pdf'; there are perfetto, csv, zip, {', '.join(FRAMEWORKS)}"),
        ("--to zip", "export takes one of two: the RUN, or with --spec the spec"),
        ("mine --spec x --to zip", "export takes one of two: the RUN, or with --spec the spec"),
        ("--spec x --to csv", "csv shows what a run measured, and a spec has measured nothing; name the RUN"),
        (
            "mine --to zip",
            (
                "there is no saved run 'mine', neither as a path nor as a name in runs; if it was saved elsewhere, give its "
                "folder's path, or the folder of runs with --runs"
            ),
        ),
        (". --to zip --runs elsewhere", ". is not a saved run: there is no run.json in it"),
    ],
)
def test_a_wrong_export_is_one_sentence(
    arguments: str, sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["export", *arguments.split()]) == 2
    assert capsys.readouterr() == ("", sentence + "\n")


def test_an_unknown_framework_is_refused() -> None:
    with pytest.raises(RequestError, match=r"no settings for jax; there are for megatron, .*slurm and huggingface") as error:
        settings(SPEC, "jax")  # type: ignore[arg-type]
    assert isinstance(error.value.sentence, Sentence)
