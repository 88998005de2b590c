from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pages.charts.units import byte_unit, in_bytes, in_time, percent, scientific, short
from pages.charts.words import words as said_in


@pytest.mark.parametrize(
    ("size", "words"),
    [(0, "0 B"), (1, "1 B"), (1023, "1,023 B"), (1024, "1 KiB"), (1536, "1.50 KiB"), (2766132, "2.64 MiB"), (5 * 2**30, "5 GiB")],
)
def test_bytes_are_binary(size: int, words: str):
    assert in_bytes(size) == words


@pytest.mark.parametrize(
    ("ns", "words"), [(999, "999 ns"), (1500, "1.50 µs"), (81_234_567, "81.2 ms"), (1_070_000_000, "1.07 s")]
)
def test_times(ns: int, words: str):
    assert in_time(ns) == words


@pytest.mark.parametrize(("count", "words"), [(950, "950"), (12_345, "12.3 k"), (221_312, "221 k"), (174_600_000_000, "175 B")])
def test_short(count: int, words: str):
    assert short(count, said_in("en")) == words


@pytest.mark.parametrize(
    ("count", "words"), [(950, "950"), (12_345, "1.23万"), (4_560_000, "456万"), (174_600_000_000, "1,746亿")]
)
def test_chinese_counts_by_ten_thousands(count: int, words: str):
    assert short(count, said_in("zh")) == words


@pytest.mark.parametrize(("value", "words"), [(3.1e-7, "3.1e-7"), (1e-5, "1e-5"), (0.0, "0e0"), (12.0, "1.2e1")])
def test_scientific(value: float, words: str):
    assert scientific(value) == words


def test_a_share():
    assert percent(0.2) == "20.0%"
    assert percent(-1e-16) == "0.0%"
    assert percent(-0.004) == "-0.4%"


@given(st.integers(0, 2**49))
def test_a_size_is_never_written_with_more_than_four_digits_before_the_point(size: int):
    assert size / byte_unit(size).size < 1024 or byte_unit(size).name == "TiB"
