"""Inference on N devices: what fits, how many sequences at a time, how fast."""

from __future__ import annotations

import pytest

from engine import catalog
from engine.devices import DEVICES
from engine.predict.inference import most_sequences
from engine.predict.planner.serving import serving
from engine.spec import LayoutSpec, RequestError

H100 = DEVICES["h100-80gb"]
GPT3 = catalog.model("gpt3-175b")


def test_gpt3_needs_more_than_four_devices_of_80_gb() -> None:
    """349 GB of weights alone: each of four would have to hold 87 GB."""
    four = serving(GPT3, 4, H100, 2048)
    assert not four["fits"].any()
    assert (four["parameters_bytes"] >= 349e9 / 4).all()
    assert four["reason"].str.contains("GiB more than the device's 74.5 GiB").all()
    eight = serving(GPT3, 8, H100, 2048)
    fits = eight[eight["fits"]]
    assert set(fits["dp"]) == {1}
    assert fits["memory_bytes"].max() <= H100.memory_bytes


def test_as_many_sequences_as_fit() -> None:
    table = serving(GPT3, 16, H100, 2048)
    row = table[table["layout"] == "dp1.tp8.pp2"].iloc[0]
    layout = LayoutSpec(tp=8, pp=2)
    assert row["most_sequences"] == row["sequences"] == most_sequences(GPT3, layout, "bf16", 2048, H100.memory_bytes)
    assert row["memory_bytes"] <= H100.memory_bytes < row["memory_bytes"] + row["cache_bytes"]


def test_too_many_sequences_do_not_fit() -> None:
    most = int(serving(GPT3, 8, H100, 2048)["most_sequences"].max())
    fine, over = (serving(GPT3, 8, H100, 2048, sequences=count) for count in (most, most + 1))
    assert fine["fits"].any()
    assert not over["fits"].any()
    assert over["reason"].iloc[0].startswith("needs 7")


def test_one_sequence_is_as_fast_as_its_weights_are_read() -> None:
    """tp reads them side by side; a pipeline reads them one stage after the other and is no faster for one sequence."""
    table = serving(catalog.model("llama3-8b"), 8, H100, 1024, sequences=1).set_index("layout")
    read = 16e9 / (H100.memory_bandwidth * 0.8)
    assert table["token_s"]["dp8.tp1.pp1"] == pytest.approx(read, rel=0.05)
    assert table["token_s"]["dp1.tp1.pp8"] == pytest.approx(read, rel=0.1)
    assert table["token_s"]["dp1.tp8.pp1"] < read / 2
    assert table["tokens_per_second"].is_monotonic_decreasing


def test_the_next_token_must_be_what_is_predicted() -> None:
    with pytest.raises(RequestError, match="bert does not predict the next token; gpt, transformer, llama do"):
        serving(catalog.model("bert-base"), 1, H100, 128)
    with pytest.raises(RequestError, match="length=0"):
        serving(GPT3, 8, H100, 0)
