"""What this machine refuses, and the sentences."""

from __future__ import annotations

import tempfile
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from engine import catalog
from engine.launch import limits
from engine.launch.dry_run.rank import dry_run_rank
from engine.launch.textbook import textbook
from engine.predict import traffic
from engine.predict.memory import memory
from engine.spec import GenerateSpec, LayoutSpec, ModelSpec, RequestError, RunSpec, WorkloadSpec


def refusal(spec: RunSpec) -> str:
    with pytest.raises(RequestError) as caught:
        limits.check(spec)
    return str(caught.value)


@pytest.fixture
def two_gb(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=2_000_000_000 + (256 << 20), total=1 << 32))


@pytest.mark.parametrize(
    ("layout", "fits"),
    [
        (LayoutSpec(dp=4, tp=4, pp=2), "dp2.tp4.pp2"),
        (LayoutSpec(dp=64, tp=1, pp=1), "dp16.tp1.pp1"),
        (LayoutSpec(dp=1, tp=1, pp=32), "dp1.tp1.pp16"),
        (LayoutSpec(dp=3, tp=4, pp=3), "dp2.tp4.pp2"),
    ],
)
def test_more_ranks_than_16(layout: LayoutSpec, fits: str) -> None:
    spec = RunSpec(model=ModelSpec(layers=32), layout=layout)
    assert refusal(spec) == f"{layout.code} is {layout.ranks} ranks; this machine runs at most 16; {fits} fits"


def test_where_groups_that_shard_do_not_divide_fewer_ranks_all_shard() -> None:
    layout = LayoutSpec(dp=64, zero=3, zero_replicas=32)
    assert refusal(RunSpec(layout=layout)).endswith("; dp16.tp1.pp1 with zero_replicas=1 fits")


def test_no_layout_is_suggested_if_none_fits() -> None:
    model = ModelSpec(hidden=31, heads=31, seq=31, ffn=31)
    spec = RunSpec(model=model, layout=LayoutSpec(tp=31, sequence_parallel=True))
    assert refusal(spec) == "dp1.tp31.pp1 is 31 ranks; this machine runs at most 16"


def test_a_run_whose_tables_would_be_too_large_to_read_is_refused() -> None:
    long = WorkloadSpec(microbatches=65_536)
    assert refusal(RunSpec(layout=LayoutSpec(pp=2), workload=long)) == (
        "memory_curve could have 6,291,456 rows (dp × tp = 1 times the 524,288 passes and messages of a step, 2 instants of "
        "each, 6 categories) and a saved run has up to 4,000,000; fewer microbatches fit"
    )
    assert refusal(RunSpec(model=ModelSpec(layers=32), layout=LayoutSpec(tp=2), workload=long)).startswith("spans could have ")
    limits.check(RunSpec(workload=long))


def test_a_small_run_waits_for_no_recording(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model with parts that nobody has recorded starts at once: its tables cannot become too large."""
    monkeypatch.setattr(traffic, "calls", lambda *_: pytest.fail("a ledger was asked for"))
    model = ModelSpec(layers=4, hidden=32, heads=4, vocab=256, seq=16, inner="relu2", position="none", parallel="one_norm")
    limits.check(RunSpec(model=model, layout=LayoutSpec(dp=2, tp=2, pp=2, zero=1), workload=WorkloadSpec(microbatches=8)))


@pytest.mark.usefixtures("two_gb")
def test_more_memory_than_there_is() -> None:
    spec = RunSpec(model=catalog.model("gpt-medium"), layout=LayoutSpec(dp=2))
    text = refusal(spec)
    assert text.startswith(
        "this run needs about 2.58 GB (weights, gradients and optimizer 1.23 GB, activations 0.41 GB, half as much"
    )
    assert text.endswith("0.12 GB for 2 processes) and 2.00 GB is free beyond a reserve of 0.27 GB; dp=1 would fit")


@pytest.mark.usefixtures("two_gb")
def test_generating_needs_the_weights_and_the_cache_that_the_formula_says() -> None:
    generate = GenerateSpec(prompt="Once", new_tokens=60, skip_training=True)
    spec = RunSpec(model=catalog.model("gpt2-1.5b"), layout=LayoutSpec(tp=5), generate=generate)
    held = memory(spec).peaks[0].bytes
    asked = limits.need(spec)
    assert asked.activations == 5 * held["kv_cache"]
    assert asked.state == pytest.approx(5 * held["parameters"], rel=0.01)  # norms and biases are on every rank
    assert refusal(spec).startswith("this run needs about 9.70 GB (weights 6.23 GB, cache of keys and values 0.04 GB, half")


def test_the_biases_of_distances_are_counted() -> None:
    """Without them the need would be below what a dry run holds on both ranks."""
    model = ModelSpec(family="t5", layers=4, hidden=256, heads=8, vocab=1000, seq=1024)
    spec = RunSpec(model=model, layout=LayoutSpec(tp=2), workload=WorkloadSpec(microbatches=1, microbatch_size=1))
    rows = dry_run_rank(spec, 0, "none", textbook(spec)).rows["memory_peak"]
    held = sum(row["bytes"] for row in rows if row["category"] in ("activations", "temporary"))
    counted = limits.need(spec).activations
    biases = 2 * 8 * 1024**2 * 4  # of the microbatch, and their gradient
    assert 1.5 * (counted - biases) < 2 * held < 1.5 * counted, "half as much again is for the allocator"


@pytest.mark.usefixtures("two_gb")
def test_the_suggested_smaller_run_fits() -> None:
    spec = RunSpec(model=catalog.model("gpt2-124m"), workload=WorkloadSpec(microbatch_size=1))
    layers = int(refusal(spec).rpartition("layers=")[2].partition(" ")[0])
    limits.check(spec.model_copy(update={"model": spec.model.model_copy(update={"layers": layers})}))
    refusal(spec.model_copy(update={"model": spec.model.model_copy(update={"layers": layers + 1})}))


@pytest.mark.usefixtures("two_gb")
def test_memory_of_the_current_run_counts_as_free() -> None:
    spec = RunSpec(model=catalog.model("gpt-medium"))
    limits.check(spec, active=[spec])


def test_each_memory_lever_lowers_the_need() -> None:
    def total(layout: dict[str, object] | None = None, **workload: object) -> int:
        chosen = LayoutSpec.model_validate({"dp": 2, "tp": 2, "pp": 2} | (layout or {}))
        return limits.need(RunSpec(layout=chosen, workload=WorkloadSpec.model_validate(workload))).total

    zero = [total({"zero": stage}) for stage in range(4)]
    assert zero == sorted(zero, reverse=True)
    assert len(set(zero)) == 4
    assert total({"recompute": "full"}) < total() < total(attention="written")
    assert total({"recompute": "core_attn"}, attention="written") < total(attention="written")
    assert total({"sequence_parallel": True}) < total()
    assert total(precision="bf16") < total()
    assert total(optimizer="sgd") < total(optimizer="sgd", momentum=0.9) < total()


def test_a_text_that_is_missing_or_too_short(tmp_path: Path) -> None:
    missing = tmp_path / "missing.txt"
    assert str(missing) in refusal(RunSpec(workload=WorkloadSpec(text=str(missing))))
    short = tmp_path / "short.txt"
    short.write_bytes(b"x" * 64)
    text = refusal(RunSpec(workload=WorkloadSpec(text=str(short))))
    assert text == f"{short} is 64 bytes long and seq=64 needs at least 65"
    short.write_bytes(b"x" * 65)
    limits.check(RunSpec(workload=WorkloadSpec(text=str(short))))


def test_parity_needs_space_in_the_folder_for_temporary_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(psutil, "disk_usage", lambda folder: SimpleNamespace(free=10_000_000))
    spec = RunSpec(model=catalog.MODELS["gpt-tiny"], layout=LayoutSpec(dp=2), parity=True)
    limits.check(spec)
    large = spec.model_copy(update={"model": spec.model.model_copy(update={"layers": 32})})
    assert refusal(large) == (
        f"to compare gradients this run writes about {8 * large.model.parameters() / 1e9:.2f} GB of them to {tmp_path}, "
        "where 0.01 GB is free"
    )
    limits.check(large.model_copy(update={"parity": False}))
    monkeypatch.undo()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
    assert refusal(spec) == f"no folder for temporary files can be made: {tmp_path / 'gone'}: No such file or directory"
