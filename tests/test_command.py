"""The command line: its output on both streams, and its exit status."""

from __future__ import annotations

import io
import json
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from engine import store
from engine.__main__ import main
from engine.command.output import print_json, size
from engine.command.progress import Progress
from engine.launch.queue.run_queue import RunState
from engine.schedule import SCHEDULES
from engine.spec import RequestError, RunSpec
from engine.spec.numbers import either
from tests.launch.bench import all_end, hosts, small
from tests.patience import PATIENCE_S

TINY = ["--layers", "2", "--hidden", "16", "--heads", "2", "--seq", "16", "--microbatches", "2", "--steps", "3"]


def engine(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "engine", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=PATIENCE_S, **options)


# ------------------------------------------------------------------------------------------------------------------ run


def test_a_run_prints_progress_and_a_summary(tmp_path: Path) -> None:
    done = engine("run", *TINY, "--layout", "dp1.tp2.pp2", "--parity", "--out", str(tmp_path))
    assert done.returncode == 0, done.stderr
    (folder,) = store.listing(tmp_path)
    lines = done.stderr.splitlines()
    assert lines[0] == "starting 4 ranks"
    assert lines[1].startswith("ready after ")
    assert [line.partition(",")[0] for line in lines if line.startswith("step")] == [f"step {n} of 3" for n in (1, 2, 3)]
    assert lines[-3:] == ["tracing one more step", "comparing with the unsharded model", "saving the run"]
    assert done.stdout.startswith("custom as dp1.tp2.pp2, 1f1b, on gloo\n")
    for word in ("loss", "memory", "traffic", "bubble", "parity", f"saved    {folder}"):
        assert f"\n  {word}" in done.stdout


def test_a_spec_file_gives_json(tmp_path: Path) -> None:
    text = tmp_path / "the user's.txt"
    text.write_text("Die Würde des Menschen ist unantastbar. " * 30, encoding="utf-8")
    spec = small("dp2.tp1.pp1", text=text.name, steps=5)
    # From another folder, to which names are relative.
    somewhere = os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent)}
    done = engine("run", "--spec", "-", "--json", input=spec.model_dump_json(), cwd=tmp_path, env=somewhere)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert set(result) == {"spec", "environment", "summary", "steps", "folder"}
    assert RunSpec.model_validate(result["spec"]) == spec
    assert [step["step"] for step in result["steps"]] == [1, 2, 3, 4, 5]
    assert result["steps"][4]["loss"] < result["steps"][0]["loss"]
    assert store.listing(tmp_path / "runs") == [Path(result["folder"])]


def test_a_failing_rank_is_named_with_its_traceback(tmp_path: Path) -> None:
    done = engine("run", *TINY, "--tp", "2", "--fault", "raise:1@2", "--out", str(tmp_path))
    assert done.returncode == 1
    assert done.stdout == ""
    sentence, _, trace = done.stderr.partition("rank 1 (dp 0, tp 1, pp 0) failed in step ")[2].partition("\n")
    assert "RuntimeError: drill" in sentence
    assert trace.startswith("Traceback (most recent call last):\n")
    assert 'RuntimeError(f"drill' in trace
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_cancels_cleanly(tmp_path: Path, number: signal.Signals, status: int) -> None:
    command = [sys.executable, "-m", "engine", "run", *TINY[:-1], "10000", "--dp", "2", "--out", str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
        try:
            assert running.stderr is not None
            while not running.stderr.readline().startswith("step 1 "):
                assert running.poll() is None
            (host,) = hosts(psutil.Process(running.pid))
            left = [host, *host.children()]
            assert len(left) == 3
            running.send_signal(number)
            out, said = running.communicate(timeout=PATIENCE_S)
            assert running.returncode == status
        finally:
            running.kill()
    assert out == ""
    assert said.splitlines()[-1] == "cancelled"
    assert "Traceback" not in said
    assert all_end(left)
    assert list(tmp_path.iterdir()) == []


# -------------------------------------------------------------------------------------------------------- wrong requests


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ("", "the following arguments are required: command; python -m engine --help shows what there is"),
        ("run --bogus", "unrecognized arguments: --bogus; python -m engine --help shows what there is"),
        ("run --step 3", "unrecognized arguments: --step 3; python -m engine --help shows what there is"),
        ("run --tp 3", "tp=3 does not divide 4 heads; 1, 2 and 4 do"),
        ("run --layers x", "layers='x' must be a whole number"),
        (
            "run --schedule fast",
            f"schedule='fast' must be {either(map(repr, SCHEDULES))}",
        ),
        ("run --layout 2x2", "layout '2x2' is not of the form dp2.tp2.pp2"),
        ("run --layout dp2.tp2.pp2 --dp 4", "--layout dp2.tp2.pp2 says dp already, so --dp cannot be given with it"),
        (
            "run --pp 2 --layout dp2.pp4 --dp 4 --tp 2",
            "--layout dp2.pp4 says dp and pp already, so --dp and --pp cannot be given with it",
        ),
        ("run --pp 2 --split 3,3", "split 3,3 adds up to 6 layers and the model has 4; 2,2 would fit"),
        ("run --fault explode", "fault 'explode' is not of the form raise:3@2, which is kind:rank@step"),
        (
            "run --spec spec.json --dp 2 --layout dp2",
            "--spec holds the whole request, so --layout and --dp cannot be given with it",
        ),
        ("run --spec nothing.json", "cannot read the spec nothing.json: No such file or directory"),
        ("run --layout dp4.tp4.pp2", "dp4.tp4.pp2 is 32 ranks; this machine runs at most 16; dp2.tp4.pp2 fits"),
    ],
)
def test_a_wrong_request_is_one_sentence(
    arguments: str, sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(arguments.split()) == 2
    assert capsys.readouterr() == ("", sentence + "\n")


def test_a_wrong_request_is_exit_status_2() -> None:
    done = engine("run", "--model", "gpt-5")
    assert done.returncode == 2
    assert done.stderr.startswith("there is no model 'gpt-5'; there are ")
    assert done.stderr.count("\n") == 1


# ------------------------------------------------------------------------------------------------------- flags and lists


def test_every_field_of_the_spec_is_a_flag(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as leaving:
        main(["run", "--help"])
    assert leaving.value.code == 0
    text = capsys.readouterr().out
    for part in ("model", "layout", "workload"):
        for name in RunSpec.model_fields[part].annotation.model_fields:  # type: ignore[union-attr]
            assert f"--{name.replace('_', '-')} " in text or f"--{name.replace('_', '-')}\n" in text


def test_flags_override_the_fields_of_a_named_model(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    seen: list[RunSpec] = []

    def note_and_refuse(spec: RunSpec, running: RunSpec | None) -> None:
        seen.append(spec)
        raise RequestError("enough")

    monkeypatch.setattr("engine.launch.limits.check", note_and_refuse)
    flags = "--model gpt-small --layers 6 --layout tp2.pp3 --dp 1 --split 1,2,3 --learning-rate 0.01 --sequence-parallel"
    assert main(["run", *flags.split()]) == 2
    (spec,) = seen
    assert (spec.model.layers, spec.model.hidden) == (6, 256)
    assert (spec.layout.code, spec.layout.split, spec.layout.sequence_parallel) == ("dp1.tp2.pp3", (1, 2, 3), True)
    assert spec.workload.learning_rate == 0.01
    assert capsys.readouterr().err == "enough\n"


def test_models_schema_and_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models"]) == 0
    assert capsys.readouterr().out.splitlines()[1].split() == ["gpt-tiny", "4", "64", "4", "256", "64", "220,544", "220,544"]
    assert main(["models", "--json"]) == 0
    listed = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert listed["gpt-tiny"]["parameters"] == 220_544
    assert listed["mixtral-8x7b"]["of a token"] == 12_879_925_248
    assert main(["schema"]) == 0
    assert json.loads(capsys.readouterr().out)["properties"].keys() == RunSpec.model_fields.keys()
    assert main(["runs", "--out", str(tmp_path)]) == 0
    assert capsys.readouterr().out == f"no runs in {tmp_path}\n"


def test_a_folder_that_cannot_be_read_does_not_hide_the_others(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "run.json").write_text("{")
    assert main(["runs", "--out", str(tmp_path), "--json"]) == 0
    out, said = capsys.readouterr()
    assert json.loads(out) == []
    assert said.startswith(f"{broken} is not a saved run: ")


def test_a_closed_pipe_is_not_an_error() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    try:
        command = [sys.executable, "-m", "engine", "schema"]
        done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True, check=False, timeout=PATIENCE_S)
    finally:
        os.close(writing)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_saved_run_succeeds_even_if_nothing_can_be_printed(tmp_path: Path) -> None:
    """The folder's name is not UTF-8, the shell has only ASCII, and both streams are on a full disk."""
    home = tmp_path / os.fsdecode(b"caf\xe9")
    ascii_only = os.environ | {"PYTHONIOENCODING": "ascii"}
    command = [sys.executable, "-m", "engine", "run", *TINY, "--out", str(home)]
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, stdout=full, stderr=full, check=False, timeout=PATIENCE_S, env=ascii_only)
    assert done.returncode == 0
    (folder,) = store.listing(home)
    shown = engine("runs", "--out", str(home), env=ascii_only)
    assert (shown.returncode, shown.stderr) == (0, "")
    assert folder.name in shown.stdout
    listed = engine("export", str(folder), "--to", "csv", "--out", str(tmp_path / "run.zip"), env=ascii_only)
    assert (listed.returncode, listed.stderr) == (0, "")


@pytest.mark.parametrize(
    ("command", "status", "said"),
    [
        ("models > /dev/full", 2, "standard output cannot be written: No space left on device\n"),
        ("--help > /dev/full", 2, "standard output cannot be written: No space left on device\n"),
        ("models >&-", 0, ""),
        ("models <&- >&- 2>&-", 0, ""),
        ("run --tp 3 2> /dev/full", 2, ""),
        ("run --tp 3 2>&-", 2, ""),
        ("run --spec - <&-", 2, "this is not JSON: Expecting value: line 1 column 1 (char 0)\n"),
    ],
)
def test_a_broken_stream_gives_no_traceback(command: str, status: int, said: str) -> None:
    line = f"{shlex.quote(sys.executable)} -m engine {command}"
    done = subprocess.run(["sh", "-c", line], capture_output=True, text=True, check=False, timeout=PATIENCE_S)
    assert (done.returncode, done.stdout, done.stderr) == (status, "", said)


def test_a_character_outside_the_encoding_is_escaped() -> None:
    asked = ("search", "--model", "gpt-tiny", "--ranks", "2", "--device", "l40s")
    shown = engine(*asked, env=os.environ | {"PYTHONIOENCODING": "ascii"})
    assert (shown.returncode, shown.stderr) == (0, "")
    assert r" on 2 \xd7 l40s" in shown.stdout


# --------------------------------------------------------------------------------------------------------------- printing


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_on_a_terminal_progress_rewrites_one_line() -> None:
    terminal = Terminal()
    progress = Progress(terminal)
    state = RunState("x", RunSpec())
    progress.show(state)
    progress.show(RunState("x", RunSpec(), "running", step=2, losses=(5.5, 5.25), backend="gloo", why="no GPU", ready_s=0.3))
    progress.end()
    clear = "\r\x1b[K"
    said = ["", "starting 1 rank", "ready after 0.30 s: no GPU", "step 1 of 20, loss 5.5000", "step 2 of 20, loss 5.2500", ""]
    assert terminal.getvalue().split(clear) == said


def test_json_has_no_nan(capsys: pytest.CaptureFixture[str]) -> None:
    print_json({"loss": [float("nan"), 1.5], "norm": float("inf")})
    assert json.loads(capsys.readouterr().out) == {"loss": [None, 1.5], "norm": None}


def test_sizes_in_words() -> None:
    assert [size(n) for n in (999, 1_024, 2_766_132, 3.5e9)] == ["999 B", "1.00 KiB", "2.64 MiB", "3.26 GiB"]
