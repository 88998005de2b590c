"""Inputs changed at random, into every way in: a valid value or a sentence, and nothing written elsewhere."""

from __future__ import annotations

import random
import warnings
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fuzz import Tally, WayIn, changed, rewritten, ways

SMALL, ALL = 20_000, 1_000_000  # inputs of `make test` and `make soak`


def fuzz(way: WayIn, examples: int, same: bool) -> Tally:
    """So many examples of `way.weight` inputs each. Hypothesis draws the seeds; `same`: the same ones every time."""
    tally = Tally()

    @settings(max_examples=examples, deadline=None, database=None, derandomize=same)
    @given(st.integers(0, 2**64 - 1))
    def tried(seed: int) -> None:
        draw = random.Random(seed)
        tally.wrong.clear()
        for _ in range(way.weight):
            sample = draw.choice(way.samples)
            whole = way.name == "zip of a run" and draw.random() < 0.7
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # zipfile warns of a name that is twice in a zip
                given = rewritten(sample, draw) if whole else changed(sample, draw)
            tally.try_one(way, given)
        assert not tally.wrong, tally.wrong[:3]

    tried()
    return tally


def run_all(folder: Path, inputs: int, same: bool = False) -> list[tuple[str, Tally]]:
    found = []
    entries = ways(folder)
    of_all = sum(way.weight for way in entries)
    before = sorted(path.name for path in folder.parent.iterdir())
    for way in entries:
        found.append((way.name, fuzz(way, -(-inputs // of_all), same)))
    assert sorted(path.name for path in folder.parent.iterdir()) == before
    return found


def test_any_input_is_a_valid_value_or_is_refused_with_a_sentence(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    found = run_all(home, SMALL, same=True)
    assert sum(tally.tried for _, tally in found) >= SMALL
    assert all(0 < tally.taken < tally.tried for _, tally in found), [(name, t.taken, t.tried) for name, t in found]


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
