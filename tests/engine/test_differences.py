"""Errors of predictions."""

from __future__ import annotations

from dataclasses import replace

import pandas as pd
import pytest

from engine.predict.run import predict
from engine.spec import LayoutSpec, RunSpec
from engine.tables import RunResult, memory_errors, traffic_differences

ANSWER = predict(RunSpec(layout=LayoutSpec(dp=2, tp=2)))


def with_table(name: str, table: pd.DataFrame) -> RunResult:
    return replace(ANSWER, tables={**ANSWER.tables, name: table})


def test_a_result_has_no_error_against_itself() -> None:
    assert memory_errors(ANSWER, ANSWER).tolist() == [0.0] * 4
    assert traffic_differences(ANSWER, ANSWER).empty


def test_an_error_is_a_share_of_the_measured_total_with_its_sign() -> None:
    table = ANSWER.tables["memory_peak"].copy()
    ours = table["rank"] == 2
    total = table.loc[ours, "bytes"].sum()
    table.loc[ours & (table["category"] == "temporary"), "bytes"] -= total // 10
    errors = memory_errors(ANSWER, with_table("memory_peak", table))
    assert errors[2] == pytest.approx(-0.1, abs=1e-6)
    assert errors.drop(2).tolist() == [0.0] * 3


@pytest.mark.parametrize("number", ["calls", "payload_bytes", "wire_bytes"])
def test_one_byte_or_call_is_a_difference(number: str) -> None:
    table = ANSWER.tables["traffic"].copy()
    table.loc[3, number] += 1
    assert len(traffic_differences(ANSWER, with_table("traffic", table))) == 1


def test_a_row_that_only_one_result_has_is_a_difference() -> None:
    assert len(traffic_differences(ANSWER, with_table("traffic", ANSWER.tables["traffic"].iloc[1:]))) == 1
