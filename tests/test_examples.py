"""The scripts in examples/, run as a user runs them."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from engine import LayoutSpec, RunSpec, WorkloadSpec, catalog, predict, search
from engine.devices import device
from engine.export import settings
from tests.patience import PATIENCE_S

EXAMPLES = Path(__file__).parent.parent / "examples"
LONGEST = 40  # lines


def example(name: str, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", f"examples.{name}", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=check, cwd=EXAMPLES.parent, timeout=PATIENCE_S)


def test_each_example_is_short() -> None:
    scripts = sorted(path for path in EXAMPLES.glob("*.py") if path.name != "__init__.py")
    assert scripts
    assert {path.name: lines for path in scripts if (lines := len(path.read_text().splitlines())) > LONGEST} == {}


@pytest.mark.parametrize(
    ("script", "mistake", "says"),
    [
        ("compare_schedules", ("1f1b", "--layout", "pq2"), "layout 'pq2' is not of the form dp2.tp2.pp2"),
        ("largest_microbatch", ("--model", "gpt-tyni"), "there is no model 'gpt-tyni'"),
        ("best_layout", ("--device", "h100"), "there is no device 'h100'"),
    ],
)
def test_a_wrong_argument_gives_one_sentence(script: str, mistake: tuple[str, ...], says: str) -> None:
    done = example(script, *mistake, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith(says)
    assert len(done.stderr.splitlines()) == 1


def test_schedules_are_compared_with_measured_and_predicted_memory() -> None:
    lines = example("compare_schedules", "gpipe", "1f1b", "--layout", "pp2", "--microbatches", "4").stdout.splitlines()[1:]
    rows = [(name, int(stage), int(measured), int(predicted)) for name, stage, measured, predicted in map(_words, lines)]
    assert [row[:2] for row in rows] == [("gpipe", 0), ("gpipe", 1), ("1f1b", 0), ("1f1b", 1)]
    assert all(measured == predicted for _, _, measured, predicted in rows)
    assert rows[0][2] > rows[2][2], "GPipe holds the activations of all microbatches, and 1F1B of two"


def _words(line: str) -> list[str]:
    return line.replace(",", "").split()


def test_the_largest_microbatch_fits_and_a_larger_one_does_not() -> None:
    said = example("largest_microbatch", "--model", "gpt2-1.5b", "--layout", "dp2.tp1.pp2", "--device", "rtx-4090").stdout
    match = re.search(r"the largest that fits is (\d+)", said)
    assert match, said
    for size, fits in ((int(match[1]), True), (int(match[1]) + 1, False)):
        workload = WorkloadSpec(precision="bf16", microbatches=4, microbatch_size=size)
        layout = LayoutSpec(dp=2, pp=2, recompute="layernorm+mlp_act")
        result = predict(RunSpec(model=catalog.model("gpt2-1.5b"), layout=layout, workload=workload))
        assert (result.summary["peak_bytes"] <= device("rtx-4090").memory_bytes) is fits
    assert "none fits" in example("largest_microbatch", "--model", "gpt3-175b", "--layout", "dp1", "--device", "rtx-4090").stdout


def test_the_best_layout_is_printed_as_settings_of_the_framework() -> None:
    done = example("best_layout", "--model", "gpt2-1.5b", "--ranks", "8", "--device", "rtx-4090")
    plan = search("gpt2-1.5b", 8, "rtx-4090")
    fitting = plan.layouts[plan.layouts["fits"] & plan.layouts["schedule"].isin(["1f1b", "interleaved"])]
    assert done.stdout == settings(plan.spec(int(fitting.index[0])), "megatron")
    assert [line.split()[0] for line in done.stderr.splitlines()[1:]] == fitting["layout"].head().tolist()
