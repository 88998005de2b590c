"""`python -m engine predict`: what it prints, and that its sums add up."""

from __future__ import annotations

import json

import pytest

from engine.__main__ import main
from engine.predict.memory import memory
from engine.spec import LayoutSpec, RunSpec


def test_every_stage_has_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", "--layout", "dp2.tp2.pp4", "--schedule", "gpipe"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "gpt-tiny as dp2.tp2.pp4, gpipe: as the formulas have it, for each rank of a stage"
    assert [line.split()[0] for line in lines[2:6]] == ["0", "1", "2", "3"]
    assert lines[-1].strip().startswith("bubble   42.9%")  # (p − 1) ÷ (m + p − 1) = 3 ÷ 7


def test_json_unfolds_every_number_into_its_sum(capsys: pytest.CaptureFixture[str]) -> None:
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
    assert any("softmax" in line for line in lines)


def test_a_stage_that_is_not_there_is_a_wrong_request(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", "--layout", "pp2", "--explain", "2"]) == 2
    assert capsys.readouterr().err == "stage 2 is not one of the 2, 0 to 1\n"
