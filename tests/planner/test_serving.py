"""Inference on N devices: what fits, how many sequences at a time, how fast."""

from __future__ import annotations

from functools import partial

import pytest

from engine import catalog
from engine.devices import DEVICES
from engine.launch.recording.client import with_ledgers
from engine.planner.inference import most_sequences
from engine.planner.reserve import tensors_that_fit
from engine.planner.serving import serving
from engine.predict.speed.rates import Assumptions, rates
from engine.spec import LayoutSpec, ModelSpec, RequestError

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


def test_only_experts_that_tokens_go_to_are_read() -> None:
    """Of 8 experts of which a token goes to 2, one sequence reads a quarter and two read a half. From four on all are read."""
    model = ModelSpec(family="llama", layers=2, hidden=64, heads=4, vocab=512, seq=64, experts=8, expert_ffn=4096)
    found = {n: with_ledgers(partial(serving, model, 1, H100, 32, n)).iloc[0] for n in (1, 2, 4, 8)}
    one, two, four, eight = (row["token_s"] for row in found.values())
    experts = 2 * 2 * 8 * 3 * 64 * 4096  # bytes in bf16, of two layers with three matrices each
    of_a_sequence = (eight - four) / 4  # its KV cache
    assert two - one - of_a_sequence == pytest.approx(experts / 4 / rates(H100, "bf16", Assumptions()).memory)
    assert four - two - 2 * of_a_sequence == pytest.approx(experts / 2 / rates(H100, "bf16", Assumptions()).memory)
    assert found[1]["parameters_bytes"] == 2 * model.parameters()


def test_the_default_is_as_many_sequences_as_fit() -> None:
    table = serving(GPT3, 16, H100, 2048)
    row = table[table["layout"] == "dp1.tp8.pp2"].iloc[0]
    layout = LayoutSpec(tp=8, pp=2)
    assert (
        row["most_sequences"]
        == row["sequences"]
        == most_sequences(GPT3, layout, "bf16", 2048, tensors_that_fit(H100, 1, 8, 2, False))
    )
    held = row["memory_bytes"] + row["reserve_bytes"]
    assert held <= H100.memory_bytes < held + row["cache_bytes"]
    free = serving(GPT3, 16, H100, 2048, kept_free=0)
    assert free["most_sequences"].max() > table["most_sequences"].max()


def test_too_many_sequences_do_not_fit() -> None:
    most = int(serving(GPT3, 8, H100, 2048)["most_sequences"].max())
    fine, over = (serving(GPT3, 8, H100, 2048, sequences=count) for count in (most, most + 1))
    assert fine["fits"].any()
    assert not over["fits"].any()
    assert over["reason"].iloc[0].startswith("needs 7")


def test_one_sequence_is_as_fast_as_weights_are_read() -> None:
    """tp ranks read them at the same time. The stages of a pipeline read them one after the other, which is not faster."""
    table = serving(catalog.model("llama3-8b"), 8, H100, 1024, sequences=1).set_index("layout")
    looked_up = 128_256 * 4096  # parameters of the embedding table: a token reads one row
    read = 2 * (8_030_261_248 - looked_up) / (H100.memory_bandwidth * 0.8)
    assert table["token_s"]["dp8.tp1.pp1"] == pytest.approx(read, rel=0.01)
    assert table["token_s"]["dp1.tp1.pp8"] == pytest.approx(read, rel=0.06)
    assert table["token_s"]["dp1.tp8.pp1"] < read / 2
    assert table["tokens_per_second"].is_monotonic_decreasing


# Of transformer-base's 12 layers 6 are the decoder's: 512 wide, an MLP of 2,048, a table of 37,000 rows, sources of 512 tokens.
# A layer's self-attention has 4 matrices; its cross-attention the query's and the output's, as keys and values of the source are
# there; the MLP 2 with their biases; 3 norms. The head is the table.
_BASE = catalog.model("transformer-base")
_READ = 6 * (6 * 512**2 + 2 * 512 * 2048 + 2048 + 512 + 3 * 2 * 512) + 37_000 * 512
_NUMBERS_KEPT = 6 * 2 * 512 * (100 + 512)  # of one sequence of 100 tokens: keys and values, its own and the source's


def test_decoding_reads_only_the_decoder() -> None:
    """Two bytes a number, read once a token; 3 sequences read 3 caches and the parameters once."""
    for sequences in (1, 3):
        row = serving(_BASE, 1, H100, 100, sequences=sequences).iloc[0]
        assert row["token_s"] == pytest.approx(2 * (_READ + sequences * _NUMBERS_KEPT) / (H100.memory_bandwidth * 0.8))


def test_decoding_multiplies_only_by_the_decoder() -> None:
    """2 FLOPs for each parameter, and for each cached token 4 for each number of a head: q·k, and the weighted sum of v."""
    slow = H100.model_copy(update={"bf16_flops": 1e12, "memory_bandwidth": 1e18, "reachable": 1})
    flops = 2 * _READ + 6 * 4 * 512 * (100 + 512)
    row = serving(_BASE, 1, slow, 100, sequences=5, assumed=Assumptions(matmul_efficiency=1)).iloc[0]
    assert row["token_s"] == pytest.approx(5 * flops / 1e12)


def test_decoding_does_not_wait_for_stages_of_the_encoder() -> None:
    """On two stages the first is the encoder: the second decodes at the speed of one, and its token is sent once."""
    alone, two = (serving(_BASE, ranks, H100, 100, sequences=4).set_index("layout") for ranks in (1, 2))
    message = H100.intra_latency + 4 * 512 * 2 / (H100.intra_bandwidth * 0.8)
    assert two["token_s"]["dp1.tp1.pp2"] == pytest.approx(alone["token_s"]["dp1.tp1.pp1"] + message)


def test_a_model_that_does_not_predict_the_next_token_cannot_serve() -> None:
    with pytest.raises(RequestError, match="bert does not predict the next token; gpt, transformer, t5, llama do"):
        serving(catalog.model("bert-base"), 1, H100, 128)
    with pytest.raises(RequestError, match="length=0"):
        serving(GPT3, 8, H100, 0)


def test_sequences_end_where_learned_positions_do() -> None:
    beyond = "length=2049 goes beyond the 2048 positions that the model has learned; length up to 2048 fits"
    with pytest.raises(RequestError, match=beyond):
        serving(GPT3, 64, H100, 2049)
    assert len(serving(GPT3, 64, H100, 2048))
    assert len(serving(catalog.model("llama3-8b"), 4, H100, 16384))  # rotary positions have no end
