"""Formula and real run agree, for specs that cover every pair of families and levers; and the dry run, for every single one."""

from __future__ import annotations

import pandas as pd
import pytest

from engine.launch.dry_run.tables import first_of_each_stage, result
from engine.launch.textbook import textbook
from engine.predict.run import predict
from engine.spec import RunSpec
from engine.tables import COORDINATE, RunResult, memory_errors, traffic_differences
from tests.covering import covering, each_choice, title
from tests.launch.dry_runs import DryRunRequest, dry_run_all
from tests.runs import Runs

DRY = 0.001  # relative error of the total at a rank's peak: one rank of a stage is used for all of them


pytestmark = pytest.mark.usefixtures("recorded_ledgers")


@pytest.fixture(scope="module")
def dry_runs() -> dict[RunSpec, RunResult]:
    """The dry run of each spec. One rank of each stage is used for the others."""
    answers = dry_run_all([DryRunRequest(spec, tuple(first_of_each_stage(spec))) for spec in each_choice()])
    rows = ({rank: one.rows for rank, one in answer.items()} for answer in answers)
    return {spec: result(spec, of, True, textbook(spec), {}, 0.0) for spec, of in zip(each_choice(), rows, strict=True)}


def standing(result: RunResult) -> pd.Series:
    """What each rank holds between steps, by category."""
    kept = result.tables["memory_peak"].set_index(["rank", "category"])["bytes"]
    return kept[kept.index.get_level_values("category").isin(["parameters", "gradients", "optimizer"])]


def assert_equal_totals(measured: pd.DataFrame, predicted: pd.DataFrame) -> None:
    """Of two tables of peaks. Categories are equal too, except that a message can be in one of two."""
    keys = ["rank", *COORDINATE, "category"]
    assert measured[keys].equals(predicted[keys])
    both = measured.merge(predicted, on=keys, suffixes=("_measured", "_predicted"))
    totals = both.groupby("rank")[["bytes_measured", "bytes_predicted"]].sum()
    assert totals["bytes_predicted"].equals(totals["bytes_measured"]), totals
    largest = both["rank"].map(totals["bytes_measured"])
    assert ((both["bytes_predicted"] - both["bytes_measured"]).abs() <= largest // 100).all(), both


def assert_agree(measured: RunResult, other: RunResult) -> None:
    assert traffic_differences(measured, other).empty
    pd.testing.assert_series_equal(standing(other), standing(measured))


@pytest.mark.parametrize("spec", covering(), ids=title)
def test_memory_and_traffic_are_as_measured_on_every_rank(runs: Runs, spec: RunSpec) -> None:
    measured, formula = runs.result(spec), predict(spec)
    assert_equal_totals(measured.tables["memory_peak"], formula.tables["memory_peak"])
    assert_agree(measured, formula)


@pytest.mark.parametrize("spec", each_choice(), ids=title)
def test_a_dry_run_is_as_measured_on_every_rank(runs: Runs, dry_runs: dict[RunSpec, RunResult], spec: RunSpec) -> None:
    """It runs the worker's own code on fake tensors, and tests/ledger has it beside the formula of other specs."""
    measured, dry = runs.result(spec), dry_runs[spec]
    assert memory_errors(measured, dry).abs().max() <= DRY
    assert_agree(measured, dry)
