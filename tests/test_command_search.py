"""`python -m engine search` and `devices`: output and exit status."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pandas as pd
import pytest

from engine import catalog
from engine.__main__ import main
from engine.api import search
from engine.devices import DEVICES
from engine.ledger.layout import needs_of
from engine.ledger.store import NotRecordedError
from engine.planner.search import Plan
from engine.spec import LayoutSpec, WorkloadSpec
from tests.engine.huggingface_configs import CONFIGS

SMALL = ["search", "--model", "gpt2-1.5b", "--ranks", "8", "--device", "rtx-4090", "--global-batch", "16"]


def test_devices_are_listed_with_their_sources(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["devices"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:]] == list(DEVICES)
    assert "989.4" in lines[3]
    assert main(["devices", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert listed[2]["memory_bytes"] == 80 * 10**9
    assert all(device["source"] for device in listed)


def test_a_search_prints_the_best_layouts_and_the_reasons(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "all.csv"
    assert main([*SMALL, "--top", "3", "--out", str(file)]) == 0
    out = capsys.readouterr().out
    table = pd.read_csv(file, keep_default_na=False)
    assert out.startswith(f"{len(table):,} layouts of gpt2-1.5b on 8 × rtx-4090, 16 sequences of 1,024 tokens a step: ")
    assert f"{table['fits'].sum():,} fit 22 GiB" in out
    rows = out.split("\n\n")[1].splitlines()
    assert [row.split()[1] for row in rows[1:]] == table["layout"][:3].tolist()
    assert "why the first and not the second:\n  dp" in out
    assert "times assume matmul_efficiency=" in out
    assert table["reason"][~table["fits"]].str.contains("more than the device's 22.4 GiB").all()


def test_a_models_file_is_planned_with_sequences_as_training_has_them(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_text(json.dumps(CONFIGS["llama3.2-1b"]))
    asked = ["search", "--model", str(file), "--ranks", "8", "--device", "h100-80gb", "--json"]
    for flags, seq in ([], 8192), (["--seq", "4096"], 4096):
        assert main([*asked, *flags]) == 0
        said = capsys.readouterr()
        assert json.loads(said.out)["model"]["seq"] == seq
        assert "were not recorded" not in said.err


def test_a_search_says_what_it_records(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    key = next(iter(needs_of(catalog.model("gpt-tiny"), LayoutSpec(), WorkloadSpec())))
    asked = iter([NotRecordedError([key])])

    def once(*_: object, **__: object) -> Plan:
        for error in asked:
            raise error
        return found

    found = search("gpt-tiny", 2, "rtx-4090")
    monkeypatch.setattr("engine.api.planner.search", once)
    monkeypatch.setattr("engine.launch.recording.client._record", lambda keys: None)
    assert main(["search", "--model", "gpt-tiny", "--ranks", "2", "--device", "rtx-4090"]) == 0
    assert "each is recorded once; parts left: 1" in capsys.readouterr().err


def test_a_search_takes_a_device_file_and_assumptions_and_prints_json(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "mine.json"
    file.write_text(DEVICES["rtx-4090"].model_copy(update={"name": "mine", "memory_bytes": 6 * 10**9}).model_dump_json())
    mine = [str(file) if word == "rtx-4090" else word for word in SMALL]
    assert (
        main([*mine, "--json", "--top", "2", "--assume", "matmul_efficiency=0.5", "--accounting", "zero2020", "--reserve", "0"])
        == 0
    )
    result = json.loads(capsys.readouterr().out)
    assert result["device"]["name"] == "mine"
    assert result["assumed"]["matmul_efficiency"] == 0.5
    assert result["accounting"] == "zero2020"
    assert len(result["layouts"]) == 2
    assert result["layouts"][0]["step_s"] <= result["layouts"][1]["step_s"]
    assert result["layouts"][0]["memory_bytes"] <= 6 * 10**9
    assert result["way_to_fit"][-1]["fits"]
    assert result["why"]


def test_if_nothing_fits_the_smallest_layout_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["search", "--model", "gpt3-175b", "--ranks", "8", "--device", "rtx-4090"]) == 0
    out = capsys.readouterr().out
    assert ": 0 fit 22 GiB" in out
    assert "none fits; that one needs least, and it needs " in out
    told = re.search(
        r"no lever makes it fit: all of them together bring it to ([\d.]+) GiB with its reserve, and the device has 22.4:\n", out
    )
    assert told
    last = [line for line in out.split(told[0])[1].splitlines() if line.startswith("  ")][-1]
    tensors = re.search(r": ([\d.]+) GiB, ", last)
    assert tensors
    assert 22.4 < float(tensors[1]) < float(told[1])


def test_for_inference_it_counts_sequences(capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["search", "--inference", "--model", "llama3-70b", "--ranks", "4", "--device", "h100-80gb", "--length", "4096"]
    assert main(asked) == 0
    out = capsys.readouterr().out
    assert out.startswith("6 layouts of llama3-70b on 4 × h100-80gb for sequences of 4,096 tokens: ")
    assert "dp1.tp4.pp1" in out
    assert main([*asked, "--json", "--sequences", "8"]) == 0
    best = json.loads(capsys.readouterr().out)["layouts"][0]
    assert (best["layout"], best["sequences"], best["fits"]) == ("dp1.tp4.pp1", 8, True)
    assert main(["search", "--inference", "--model", "gpt3-175b", "--ranks", "2", "--device", "h100-80gb", "--reserve", "0"]) == 0
    assert (
        "none fits; that one needs least, and it needs 167.1 GiB with its reserve for 1 sequence a replica"
        in capsys.readouterr().out
    )


@pytest.mark.parametrize(
    "flag",
    [
        "--optimizer lion",
        "--attention written",
        "--accumulate bf16",
        "--bf16-optimizer",
        "--accounting zero2020",
        "--only megatron",
        "--tokens 1e12",
    ],
)
def test_for_inference_what_is_for_training_is_refused(capsys: pytest.CaptureFixture[str], flag: str) -> None:
    asked = ["search", "--inference", "--model", "llama3-8b", "--ranks", "4", "--device", "h100-80gb", *flag.split()]
    assert main(asked) == 2
    assert capsys.readouterr() == ("", f"{flag.split()[0]} is for training; leave it out, or --inference\n")


def test_a_search_says_what_a_training_takes_with_the_best_layout(capsys: pytest.CaptureFixture[str]) -> None:
    asked = [*SMALL, "--only", "megatron", "--tokens", "1e12", "--price", "2", "--watts", "500"]
    assert main([*asked, "--json", "--top", "1"]) == 0
    result = json.loads(capsys.readouterr().out)
    bill, best = result["bill"], result["layouts"][0]
    assert bill["days"] == pytest.approx(1e12 / best["tokens_per_second"] / 86_400)
    assert bill["device_hours"] == pytest.approx(8 * 24 * bill["days"])
    assert (bill["money"], bill["megawatt_hours"]) == pytest.approx((2 * bill["device_hours"], bill["device_hours"] * 5e-4))
    assert best["schedule"] in ("1f1b", "interleaved")
    assert main(asked) == 0
    assert "\n\n1e+12 tokens with the first take " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (["--device", "h100"], "there is no device 'h100'; there are a100-40gb"),
        (["--model", "gpt4"], "there is no model 'gpt4'"),
        (["--ranks", "0"], "ranks=0 must be from 1 to 1,000,000"),
        (["--global-batch", "3", "--ranks", "512"], "no dp × tp × pp = 512 fits"),
        (["--accounting", "mine"], "there is no accounting 'mine'; there are engine, megatron-core, korthikanti2022, zero2020"),
        (["--assume", "matmul_efficiency"], "--assume 'matmul_efficiency' is not of the form NAME=VALUE"),
        (["--assume", "matmul_efficiency=2"], "matmul_efficiency='2' must be less than or equal to 1"),
        (["--assume", "speed=2"], "there is no field 'speed'"),
        (["--length", "100"], "--length is for inference; give --inference with it"),
        (["--inference"], "--global-batch is for training; --sequences says how many are generated at a time"),
        (["--price", "2"], "--price is for what a training takes; give --tokens with it"),
        (["--tokens", "-1"], "tokens=-1 must be positive and finite"),
        (["--only", "torchtitan"], "torchtitan has no gpt"),
        (["--top", "0"], "--top 0 shows nothing"),
        (["--seq", "0"], "seq=0 must be greater than or equal to 1"),
        (["--precision", "fp8"], "precision='fp8' must be 'fp32' or 'bf16'"),
        (["--out", "/nowhere/x.csv"], "cannot write /nowhere/x.csv: "),
    ],
)
def test_a_wrong_search_is_refused_with_one_sentence(
    capsys: pytest.CaptureFixture[str], change: list[str], sentence: str
) -> None:
    assert main([*SMALL, *change]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith(sentence)
    assert said.err.count("\n") == 1


def test_a_plan_keeps_free_what_the_allocator_does_not_see_and_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*SMALL, "--top", "1"]) == 0
    out = capsys.readouterr().out
    for term in (
        "CUDA context",
        "NCCL: buffers of the",
        "cuBLAS: workspace",
        "fragmentation of the allocator: 4% of the tensors",
    ):
        assert term in out
    fitting = []
    for gib in ("0", "4", "12"):
        assert main([*SMALL, "--json", "--reserve", gib]) == 0
        result = json.loads(capsys.readouterr().out)
        assert {row["reserve_bytes"] for row in result["layouts"]} == {int(gib) * 2**30}
        fitting.append(result["feasible"])
    assert fitting == sorted(fitting, reverse=True)
    assert fitting[0] > fitting[-1]
    assert main([*SMALL, "--reserve", "-1"]) == 2
    assert capsys.readouterr().err == "--reserve -1 is not from 0 to 1,000,000 GiB\n"


def test_a_search_takes_the_precision_of_gradients_and_of_the_optimizers_states(capsys: pytest.CaptureFixture[str]) -> None:
    """Gradients in bf16 are turned into fp32 for the update of an fp32 copy; without the copy they are not."""
    smallest = []
    for flags in ([], ["--accumulate", "bf16"], ["--accumulate", "bf16", "--bf16-optimizer"]):
        assert main([*SMALL, "--json", "--top", "1000", *flags]) == 0
        rows = json.loads(capsys.readouterr().out)["layouts"]
        smallest.append(min(row["memory_bytes"] for row in rows if row["zero"] == 0))
    assert len(set(smallest)) == 3
    assert min(smallest) == smallest[2] < 0.7 * smallest[0]
