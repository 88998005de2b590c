"""Inputs changed at random, into every way in: a valid value or a sentence, and nothing written elsewhere."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import tracemalloc
import warnings
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fuzz import MOST_S, Tally, WayIn, most_s, varied, ways

SMALL, ALL = 20_000, 1_000_000  # inputs of `make test` and `make soak`
MEASURED = 2_000  # of `make test`, whose memory is traced, which takes five times as long
GUIDED = 50_000  # of `make soak`, by coverage


def fuzz(way: WayIn, examples: int, same: bool, tally: Tally) -> Tally:
    """So many examples of `way.weight` inputs each. Hypothesis draws the seeds; `same`: the same ones every time."""

    @settings(max_examples=examples, deadline=None, database=None, derandomize=same)
    @given(st.integers(0, 2**64 - 1))
    def tried(seed: int) -> None:
        draw = random.Random(seed)
        tally.wrong.clear()
        for _ in range(way.weight):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # zipfile warns of a name that is twice in a zip
                given = varied(way, draw.choice(way.samples), draw)
            tally.try_one(way, given)
        assert not tally.wrong, tally.wrong[:3]

    tried()
    return tally


def run_all(folder: Path, inputs: int, same: bool = False, measured: bool = False) -> list[tuple[str, Tally]]:
    found = []
    entries = ways(folder)
    of_all = sum(way.weight for way in entries)
    before = sorted(path.name for path in folder.parent.iterdir())
    try:
        if measured:
            tracemalloc.start()
        limit = most_s(entries) if measured else MOST_S
        for way in entries:
            found.append((way.name, fuzz(way, -(-inputs // of_all), same, Tally(measured, limit))))
    finally:
        tracemalloc.stop()  # it makes all else slower
    assert sorted(path.name for path in folder.parent.iterdir()) == before
    return found


def test_any_input_is_a_valid_value_or_is_refused_with_a_sentence(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    found = run_all(home, SMALL, same=True)
    assert sum(tally.tried for _, tally in found) >= SMALL
    assert all(0 < tally.taken < tally.tried for _, tally in found), [(name, t.taken, t.tried) for name, t in found]


def test_no_input_takes_much_time_or_memory(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    found = run_all(home, MEASURED, same=True, measured=True)
    assert all(tally.largest > 0 for _, tally in found), "memory is not traced"


@pytest.mark.nightly
def test_a_million_inputs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    home = tmp_path / "home"
    home.mkdir()
    found = run_all(home, ALL)
    with capsys.disabled():
        for name, tally in found:
            print(
                f"\n{name}: {tally.tried:,} tried, {tally.taken:,} taken, the slowest took {1000 * tally.slowest_s:.1f} ms",
                end="",
            )
        print(f"\ninputs: {sum(tally.tried for _, tally in found):,} tried, 0 wrong")


@pytest.mark.nightly
@pytest.mark.requires("atheris")
def test_inputs_that_coverage_guides(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    entries, tried, told = ways(tmp_path), 0, []
    each = GUIDED // sum(way.weight for way in entries)
    for number, way in enumerate(entries):
        folder = tmp_path / str(number)
        folder.mkdir()
        command = [sys.executable, "-m", "tests.guided", way.name, str(each * way.weight), str(folder)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
        assert done.returncode == 0, done.stderr[-4000:]
        found = json.loads(done.stdout.splitlines()[-1])
        assert found["kept"] > len(way.samples), f"{way.name}: nothing that was tried reached new code"
        tried += found["tried"]
        told.append(
            f"{way.name}: {found['tried']:,} tried, {found['taken']:,} taken, {found['kept']} kept; "
            f"at most {1000 * found['slowest_s']:.1f} ms, {found['largest'] / 1e6:.2f} MB"
        )
    with capsys.disabled():
        print("", *told, f"inputs guided by coverage: {tried:,} tried, 0 wrong, 0 wrote elsewhere", sep="\n")
