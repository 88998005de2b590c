"""The schemas, and rows made into tables."""

from __future__ import annotations

import io
import math
from typing import Any, get_args

import pandas as pd
import pytest

from engine.parquet import ReadLimits, read_table
from engine.tables import CATEGORIES, SCHEMAS, Source, compared, table
from tests import check_run

VALUES: dict[str, Any] = {"str": "x", "int64": 7, "float64": 0.5}


def row(name: str) -> dict[str, Any]:
    return {column: VALUES[dtype] for column, dtype in SCHEMAS[name].items() if column != "source"}


def test_the_schemas_are_those_of_the_contract() -> None:
    """A table may have more columns than the contract. Loads of experts are a table more."""
    more = {"spans": {"axis", "exposed_ns"}, "memory_peak": {"cp"}}
    tables = {name: columns for name, columns in SCHEMAS.items() if name != "expert_load"}
    found = {name: [column for column in columns if column not in more.get(name, ())] for name, columns in tables.items()}
    assert found == check_run.COLUMNS
    assert set(CATEGORIES) <= check_run.CATEGORIES
    assert set(get_args(Source)) == check_run.SOURCES


@pytest.mark.parametrize("name", SCHEMAS)
@pytest.mark.parametrize("rows", [0, 1, 3])
def test_a_table_has_exactly_the_columns_and_types_of_its_schema(name: str, rows: int) -> None:
    made = table(name, [row(name)] * rows, "measured")
    assert {column: str(dtype) for column, dtype in made.dtypes.items()} == SCHEMAS[name]
    assert list(made.columns) == list(SCHEMAS[name])
    assert len(made) == rows
    assert set(made["source"]) == ({"measured"} if rows else set())


def test_bytes_above_two_to_the_32_stay_exact() -> None:
    made = table("memory_peak", [row("memory_peak") | {"bytes": 2**53 + 1}], "formula")
    assert made["bytes"].tolist() == [2**53 + 1]


def test_a_loss_can_be_nan() -> None:
    """The table of a diverged run has its losses unchanged."""
    made = table("steps", [row("steps") | {"loss": math.nan, "grad_norm": math.inf}], "measured")
    assert math.isnan(made["loss"][0])
    assert math.isinf(made["grad_norm"][0])


def test_a_row_that_lacks_a_column_is_refused() -> None:
    incomplete = row("steps")
    del incomplete["tokens"]
    with pytest.raises(KeyError, match="tokens"):
        table("steps", [row("steps"), incomplete], "measured")


@pytest.mark.parametrize("value", [1.5, None, math.nan, "seven", 2**63])
def test_a_value_that_is_not_an_integer_is_refused_in_an_integer_column(value: Any) -> None:
    with pytest.raises((ValueError, TypeError, OverflowError)):
        table("steps", [row("steps") | {"step_ns": value}], "measured")


def traffic_rows(*calls: tuple[int, str, int]) -> list[dict[str, Any]]:
    """Rows with these (rank, collective, payload), otherwise equal."""
    same = {"axis": "tp", "phase": "forward", "group": "0,1", "calls": 1, "wire_bytes": 0}
    return [same | {"rank": rank, "collective": collective, "payload_bytes": size} for rank, collective, size in calls]


def test_two_results_are_joined_and_a_missing_row_counts_as_zero() -> None:
    measured = table("traffic", traffic_rows((0, "all_reduce", 8), (1, "all_reduce", 8)), "measured")
    predicted = table("traffic", traffic_rows((0, "all_reduce", 6), (0, "all_gather", 4)), "formula")
    both = compared("traffic", measured, predicted)
    pairs = {
        (r, c): (m, p)
        for r, c, m, p in both[["rank", "collective", "payload_bytes_measured", "payload_bytes_predicted"]].to_numpy()
    }
    assert pairs == {(0, "all_gather"): (0, 4), (0, "all_reduce"): (8, 6), (1, "all_reduce"): (8, 0)}


def test_rows_with_equal_keys_are_refused() -> None:
    twice = table("traffic", traffic_rows((0, "all_reduce", 8), (0, "all_reduce", 8)), "measured")
    with pytest.raises(pd.errors.MergeError):
        compared("traffic", twice, twice)


def test_tables_without_rows_can_be_compared_after_they_were_saved() -> None:
    """One rank sends nothing, so its table of traffic is empty."""
    content = parquet_of(table("traffic", [], "measured"))
    saved = [read_table("traffic", io.BytesIO(content), ReadLimits(10, 1 << 20, foreign=False)) for _ in range(2)]
    assert compared("traffic", *saved).empty


def parquet_of(rows: pd.DataFrame) -> bytes:
    buffer = io.BytesIO()
    rows.to_parquet(buffer, index=False)
    return buffer.getvalue()
