"""`python -m engine predict`: its output, and that its terms add up."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from engine import dry_run, load, predict, store
from engine.__main__ import main
from engine.predict.memory import memory
from engine.spec import LayoutSpec, RunSpec
from engine.tables import TABLES, compared
from tests.check_run import findings


def test_every_stage_has_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", "--layout", "dp2.tp2.pp4", "--schedule", "gpipe"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "gpt-tiny as dp2.tp2.pp4, gpipe: as the formulas have it, for each rank of a stage"
    assert [line.split()[0] for line in lines[2:6]] == ["0", "1", "2", "3"]
    assert lines[-1].strip().startswith("bubble   42.9%")  # (p − 1) ÷ (m + p − 1) = 3 ÷ 7


def test_json_has_the_terms_of_every_number(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", "--layout", "dp2.pp2", "--zero", "1", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    peaks = memory(RunSpec(layout=LayoutSpec(dp=2, pp=2, zero=1))).peaks
    assert [stage["bytes"] for stage in said["stages"]] == [peak.bytes for peak in peaks]
    for stage in said["stages"]:
        for category, size in stage["bytes"].items():
            assert sum(term["bytes"] for term in stage["terms"] if term["category"] == category) == size
    assert said["summary"]["peak_bytes"] == max(peak.total for peak in peaks)


def test_one_stage_is_explained(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", "--layout", "pp2", "--explain", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("stage 1 at its peak, during ")
    assert any("attention: mixture of the values" in line for line in lines)


def test_a_stage_that_does_not_exist_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", "--layout", "pp2", "--explain", "2"]) == 2
    assert capsys.readouterr().err == "stage 2 is not one of the 2, 0 to 1\n"


def test_for_inference_it_prints_memory_and_traffic(capsys: pytest.CaptureFixture[str]) -> None:
    """GPT-3 175B in bf16 over tp=8: 9.66 GB of keys and values for 2,048 tokens, an eighth of them on a rank."""
    asked = ["predict", "--model", "gpt3-175b", "--layout", "tp8", "--precision", "bf16", "--inference", "--length", "2048"]
    assert main([*asked, "--sequences", "1", "16", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    one, many = result["held"]
    assert one["kv_cache"] == 2 * 96 * 12288 * 2 * 2048 // 8
    assert many["kv_cache"] == 16 * one["kv_cache"]
    assert many["total"] == many["parameters"] + many["kv_cache"]
    (decode,) = (s for s in result["sent"] if (s["phase"], s["sequences"], s["collective"]) == ("decode", 1, "all_reduce"))
    assert decode["calls"] == 2 * 96 + 1  # two of each layer, and the embedding's
    assert main(asked) == 0
    assert "1.12 GiB" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "why"),
    [
        (["--length", "4"], "--length is for inference; give --inference with it"),
        (["--inference", "--sequences", "0"], "must be 1 and more"),
        (["--inference", "--model", "bert-base"], "bert does not predict the next token"),
        (["--inference", "--length", "8", "65"], "length=65 goes beyond the 64 positions that the model has learned"),
    ],
)
def test_an_impossible_inference_is_refused(flags: list[str], why: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", *flags]) == 2
    assert why in capsys.readouterr().err


def test_for_inference_with_an_encoder_it_prints_memory_and_no_traffic(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Two decoder layers keep two vectors of 64 numbers for each of 32 tokens and each token of the source, in fp32."""
    asked = ["predict", "--model", "transformer-tiny", "--layout", "tp2", "--inference", "--sequences", "1", "--length", "32"]
    assert main(asked) == 0
    assert capsys.readouterr().out.endswith("\nwhat is sent is not predicted for a model with an encoder\n")
    assert main([*asked, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["sent"] is None
    (held,) = result["held"]
    model = result["spec"]["model"]
    assert held["kv_cache"] == 2 * 2 * (32 + model["seq"]) * model["hidden"] * 4 // 2


def test_with_very_many_ranks_there_is_a_line_for_each_stage(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", "--layout", "dp65536.tp1.pp1"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 5


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ("--inference --length 1000000000000000000000", "sequences=16 of length=1e21 would take 3.28e25 bytes of a rank"),
        (f"--inference --sequences 1{'0' * 400}", "sequences=1e400 of length=64 would take"),
        ("--layers 1024 --layout pp1024 --schedule zb-h1 --microbatches 65536", "7,364,592 passes and messages"),
    ],
)
def test_numbers_too_large_for_tables_are_refused(asked: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", *asked.split()]) == 2
    answer = capsys.readouterr()
    assert answer.out == ""
    assert said in answer.err
    assert answer.err.count("\n") == 1


@pytest.mark.parametrize(
    "asked",
    [
        "--layout dp2.tp2.pp2 --zero 1 --parity",
        "--layout dp3.tp1.pp2 --zero 3 --microbatches 8 --schedule zb-h1",
        "--layout tp2.pp2 --skip-training --prompt abc --new-tokens 4",
        "--layers 16 --layout dp64.tp4.pp8 --microbatches 32",
    ],
)
def test_a_prediction_is_saved_as_a_run_is(asked: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", *asked.split(), "--out", str(tmp_path), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    (folder,) = store.listing(tmp_path)
    assert said["folder"] == str(folder)
    found = load(folder)
    assert found.spec.model_dump(mode="json") == said["spec"]
    assert set(found.tables) == set(TABLES) - {"parity", "expert_load"}
    assert {source for rows in found.tables.values() for source in rows["source"]} == {"formula"}
    assert list(findings(folder)) == []
    curve = found.tables["memory_curve"]
    highest = curve.groupby(["rank", "t_ns"])["bytes"].sum().groupby("rank").max()
    peaks = found.tables["memory_peak"].groupby("rank")["bytes"].sum()
    assert highest.to_dict() == peaks[highest.index].to_dict()


def test_a_saved_prediction_has_the_tables_of_a_dry_run(tmp_path: Path) -> None:
    """Of the same spec: the same peaks and traffic, and the same spans. Those of calls are the dry run's alone."""
    case = RunSpec(layout=LayoutSpec(dp=2, tp=2, pp=2, zero=2))
    ours, theirs = predict(case, tmp_path), dry_run(case)
    assert load(store.listing(tmp_path)[0]).summary == ours.summary
    for name in ("memory_peak", "traffic"):
        both = compared(name, theirs.tables[name], ours.tables[name])
        assert (both.filter(like="_measured").to_numpy() == both.filter(like="_predicted").to_numpy()).all()
    mine, dry = (t.tables["spans"].query("lane == 'compute'").drop(columns="source") for t in (ours, theirs))
    order = ["rank", "start_ns", "end_ns", "kind", "chunk", "microbatch"]
    assert mine.sort_values(order).reset_index(drop=True).equals(dry.sort_values(order).reset_index(drop=True))


def test_a_table_for_inference_is_not_saved(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", "--inference", "--out", str(tmp_path)]) == 2
    assert "leave out --out" in capsys.readouterr().err
