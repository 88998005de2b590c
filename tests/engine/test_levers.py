"""Each lever changes memory and traffic by the amount computed here. test_parity.py has parity with each lever."""

from __future__ import annotations

from typing import Any

import pytest

from engine.spec import WHOLE_LOSS, LayoutSpec, ModelSpec, RequestError, RunSpec, WorkloadSpec
from tests.runs import Runs, parameters_held

MODEL = ModelSpec(layers=4, hidden=32, heads=4, vocab=256, seq=16)
FLOAT, HALF = 4, 2
STEP_COUNTER = 4  # bytes that AdamW keeps for each tensor it updates


def lever(code: str, model: ModelSpec = MODEL, workload: dict[str, Any] | None = None, **layout: Any) -> RunSpec:
    return RunSpec(
        model=model,
        layout=LayoutSpec(**LayoutSpec.degrees(code), **layout),
        workload=WorkloadSpec(**{"steps": 2, "microbatches": 2, "microbatch_size": 2} | (workload or {})),
    )


def at_peak(runs: Runs, spec: RunSpec, rank: int = 0) -> dict[str, int]:
    """category → bytes of one rank."""
    table = runs.result(spec).tables["memory_peak"]
    return dict(table[table["rank"] == rank].set_index("category")["bytes"])


class TestZeRO:
    """Ψ: parameters of a rank without ZeRO. Each bucket's shard is rounded up to whole elements."""

    whole = parameters_held(MODEL, tp=1, layers=4, first=True, last=True)
    buckets = 2 + MODEL.layers + 1  # token table, positions, each layer, last norm

    @pytest.mark.parametrize("zero", [0, 1, 2, 3])
    def test_zero_shards_what_its_stage_says(self, runs: Runs, zero: int) -> None:
        dp = 4
        bytes_ = at_peak(runs, lever(f"dp{dp}", zero=zero))
        padding = self.buckets * (dp - 1)  # elements of all buckets, at most; a shard has its part of it

        def held(numbers: int, sharded: bool) -> range:
            """Bytes of `numbers` fp32 numbers for each parameter: exact, or sharded over dp with at most the padding more."""
            least = numbers * FLOAT * self.whole // (dp if sharded else 1)
            return range(least, least + (numbers * FLOAT * padding if sharded else 0) + 1)

        assert bytes_["parameters"] in held(1, zero >= 3)
        assert bytes_["gradients"] in held(1, zero >= 2)
        assert bytes_["optimizer"] - self.buckets * STEP_COUNTER in held(2, zero >= 1)

    @pytest.mark.parametrize("zero", [0, 1, 2, 3])
    def test_zero_sends_what_its_stage_says(self, runs: Runs, zero: int) -> None:
        """Calls on dp in one step: B buckets, L layers, m microbatches. The loss is averaged apart from the buckets."""
        spec = lever("dp4", zero=zero)
        traffic = runs.result(spec).tables["traffic"]
        mine = traffic[(traffic["rank"] == 0) & (traffic["axis"] == "dp")]
        calls = mine.groupby(["collective", "phase"])["calls"].sum().to_dict()
        b, layers, m = self.buckets, MODEL.layers, spec.workload.microbatches
        norm_and_loss = {("all_reduce", "step"): 2 if zero else 1}
        # In forward each bucket is gathered once, the token table again for the head. In backward, layers and head are gathered.
        forward, backward = b + 1, layers + 1 + 1
        expected = {
            0: {("all_reduce", "backward"): b},
            1: {("reduce_scatter", "backward"): b, ("all_gather", "gather"): b},
            2: {("reduce_scatter", "backward"): m * b, ("all_gather", "gather"): b},
            3: {
                ("reduce_scatter", "backward"): m * b,
                ("all_gather", "forward"): m * forward,
                ("all_gather", "backward"): m * backward,
            },
        }[zero]
        assert calls == norm_and_loss | expected

    @pytest.mark.parametrize("dp", [2, 4])
    def test_zero_1_takes_its_states_and_a_share_of_one_bucket(self, runs: Runs, dp: int) -> None:
        """Gradients are reduced in place, one bucket at a time. What is received is one replica's share of a layer's."""
        layer = parameters_held(MODEL, tp=1, layers=1, first=False, last=False)  # the largest bucket
        curve = runs.result(lever(f"dp{dp}", zero=1)).tables["memory_curve"]
        assert 0 < curve[curve["category"] == "communication"]["bytes"].max() <= -(-layer // dp) * FLOAT

    @pytest.mark.parametrize("dp", [2, 4])
    def test_zero_2_takes_the_bucket_that_is_written_and_the_one_under_way(self, runs: Runs, dp: int) -> None:
        layer = parameters_held(MODEL, tp=1, layers=1, first=False, last=False)
        curve = runs.result(lever(f"dp{dp}", zero=2)).tables["memory_curve"]
        most = curve[curve["category"] == "communication"]["bytes"].max()
        assert layer * FLOAT < most <= (2 * layer + -(-layer // dp)) * FLOAT

    def test_every_replica_measures_the_same(self, runs: Runs) -> None:
        for zero in (1, 2, 3):
            spec = lever("dp4", zero=zero)
            assert len({tuple(at_peak(runs, spec, rank).items()) for rank in range(4)}) == 1


class TestSequenceParallelism:
    def test_sequence_parallelism_shards_what_tp_does_not(self, runs: Runs) -> None:
        """Of each layer, four (B, S, H) tensors (both norms' inputs and outputs) and both norms' mean and deviation; the same
        once for the last norm. tp shards the rest of a layer."""
        off, on = (at_peak(runs, lever("tp2", sequence_parallel=on)) for on in (False, True))
        b, s, h, layers = 2, MODEL.seq, MODEL.hidden, MODEL.layers
        whole = (2 * layers + 1) * (2 * b * s * h + 2 * b * s) * FLOAT
        assert off["activations"] - on["activations"] == whole // 2

    def test_sequence_parallelism_sends_the_same_bytes_by_other_collectives(self, runs: Runs) -> None:
        """An all-reduce equals a reduce-scatter and an all-gather. Only the gathers in backward are additional."""
        wire = {}
        for on in (False, True):
            traffic = runs.result(lever("tp2", sequence_parallel=on)).tables["traffic"]
            rows = traffic[(traffic["rank"] == 0) & (traffic["axis"] == "tp") & (traffic["phase"] != "step")]
            wire[on] = rows.groupby("collective")["wire_bytes"].sum()
        b, s, h, m = 2, MODEL.seq, MODEL.hidden, 2
        assert "reduce_scatter" not in wire[False].index
        half = b * s * h * FLOAT // 2  # bytes that a ring of two sends for an all-gather or a reduce-scatter of (B, S, H)
        # In backward each of a layer's two column-parallel layers gathers its input again, and so does the head.
        again = (2 * MODEL.layers + 1) * m * half
        # Parameters that tp does not shard have seen a part of the sequence, so their gradients are summed.
        whole = MODEL.layers * 6 * h + MODEL.seq * h + 2 * h
        assert wire[True].sum() - wire[False].sum() == again + whole * FLOAT


class TestRecompute:
    b, s, h, a = 2, MODEL.seq, MODEL.hidden, MODEL.heads

    def test_selective_recompute_drops_what_attention_saves(self, runs: Runs) -> None:
        """The softmax's result (B, A, S, S), and which scores were masked (S, S), a byte each, of every layer."""
        workload = {"attention": "written"}
        none, selective = (at_peak(runs, lever("tp1", recompute=r, workload=workload)) for r in ("none", "core_attn"))
        dropped = self.b * self.a * self.s**2 * FLOAT + self.s**2
        saved = none["activations"] - selective["activations"]
        # q, k and v are kept as one tensor instead of three, with the same sum.
        assert saved == MODEL.layers * dropped

    def test_fused_attention_keeps_a_number_a_row_in_place_of_the_scores(self, runs: Runs) -> None:
        """Gone are the softmax's result (B, A, S, S), what was masked (S, S), and the scale, a number of 8 bytes."""
        written, fused = (at_peak(runs, lever("tp1", workload={"attention": name})) for name in ("written", "fused"))
        scores = self.b * self.a * self.s**2 * FLOAT + self.s**2 + 8
        assert written["activations"] - fused["activations"] == MODEL.layers * (scores - self.b * self.a * self.s * FLOAT)

    @pytest.mark.parametrize("recompute", ["layernorm", "mlp_act", "mlp_act+layernorm"])
    def test_recompute_of_parts_drops_their_results(self, runs: Runs, recompute: str) -> None:
        """Of norms both results (B, S, H), of the MLP's activation its result (B, S, 4 H), in one more layer."""

        def kept(recompute: str) -> int:
            deeper = MODEL.model_copy(update={"layers": 5})
            four, five = (at_peak(runs, lever("tp1", model=model, recompute=recompute)) for model in (MODEL, deeper))
            return five["activations"] - four["activations"]

        widths = 2 * self.h * ("layernorm" in recompute) + 4 * self.h * ("mlp_act" in recompute)
        assert kept("none") - kept(recompute) == self.b * self.s * widths * FLOAT

    def test_full_recompute_keeps_only_each_layers_input(self, runs: Runs) -> None:
        """One more layer costs one more (B, S, H)."""
        deeper = MODEL.model_copy(update={"layers": 5})
        four, five = (at_peak(runs, lever("tp1", recompute="full", model=model)) for model in (MODEL, deeper))
        assert five["activations"] - four["activations"] == self.b * self.s * self.h * FLOAT


class TestLossInChunks:
    tokens, chunk, vocab = 2 * MODEL.seq, 8, 2048

    def peak(self, runs: Runs, vocab: int, chunk: int, microbatches: int = 2) -> dict[str, int]:
        model = MODEL.model_copy(update={"vocab": vocab})
        workload = {"loss_chunk": chunk, "microbatches": microbatches}
        return at_peak(runs, lever("pp2", model, workload, schedule="gpipe"), rank=1)

    def test_the_logits_of_one_chunk_are_there_at_a_time(self, runs: Runs) -> None:
        whole, chunked = (sum(self.peak(runs, self.vocab, chunk, 1).values()) for chunk in (WHOLE_LOSS, self.chunk))
        fewer = (self.tokens - self.chunk) * self.vocab * FLOAT
        assert whole - chunked == pytest.approx(fewer, rel=0.02)

    def test_microbatches_in_flight_hold_nothing_of_the_size_of_the_vocabulary(self, runs: Runs) -> None:
        """Neither logits nor a gradient of the output matrix."""
        more = [
            sum(self.peak(runs, vocab, self.chunk, 4).values()) - sum(self.peak(runs, vocab, self.chunk, 2).values())
            for vocab in (1024, self.vocab)
        ]
        assert more[0] == more[1] > 0


class TestPrecisionAndOptimizer:
    whole, buckets = TestZeRO.whole, TestZeRO.buckets

    @pytest.mark.parametrize(("accumulate", "gradient"), [("fp32", FLOAT), ("bf16", HALF)])
    def test_bf16_keeps_2_bytes_of_parameters_and_12_of_optimizer(self, runs: Runs, accumulate: str, gradient: int) -> None:
        """bf16 parameters; an fp32 copy and two moments for AdamW; gradients as they are added up: 16 or 18 in all."""
        bytes_ = at_peak(runs, lever("tp1", workload={"precision": "bf16", "accumulate": accumulate}))
        assert bytes_["parameters"] == HALF * self.whole
        assert bytes_["gradients"] == gradient * self.whole
        assert bytes_["optimizer"] == 3 * FLOAT * self.whole + self.buckets * STEP_COUNTER

    @pytest.mark.parametrize("accumulate", ["fp32", "bf16"])
    @pytest.mark.parametrize(("optimizer", "numbers"), [("adamw", 2), ("lion", 1), ("sgd", 0)])
    def test_a_bf16_optimizer_keeps_6_to_10_bytes_a_parameter(
        self, runs: Runs, optimizer: str, numbers: int, accumulate: str
    ) -> None:
        """2 of values, 2 or 4 of gradients, and 2 of each state."""
        numbers_of = {"precision": "bf16", "accumulate": accumulate, "bf16_optimizer": True, "optimizer": optimizer}
        bytes_ = at_peak(runs, lever("tp1", workload=numbers_of))
        counters = self.buckets * STEP_COUNTER if optimizer == "adamw" else 0
        assert bytes_["optimizer"] == numbers * HALF * self.whole + counters
        assert bytes_["parameters"] == HALF * self.whole
        assert bytes_["gradients"] == (FLOAT if accumulate == "fp32" else HALF) * self.whole

    @pytest.mark.parametrize(("momentum", "numbers"), [(0.0, 0), (0.9, 1)])
    def test_sgd_keeps_one_number_for_each_parameter_or_none(self, runs: Runs, momentum: float, numbers: int) -> None:
        bytes_ = at_peak(runs, lever("tp1", workload={"optimizer": "sgd", "momentum": momentum}))
        assert bytes_["optimizer"] == numbers * FLOAT * self.whole


@pytest.mark.parametrize(
    ("layout", "workload", "reason"),
    [
        ({"zero": 1}, {}, "zero=1 shards over dp replicas, and dp=1 has only one"),
        ({"sequence_parallel": True}, {}, "needs tp of at least 2, not tp=1"),
        ({}, {"accumulate": "bf16"}, "accumulate=bf16 needs precision=bf16"),
        ({}, {"bf16_optimizer": True}, "bf16_optimizer needs precision=bf16"),
        ({}, {"momentum": 0.9}, "a setting of sgd"),
    ],
)
def test_a_lever_without_effect_is_refused_with_the_reason(layout: dict[str, Any], workload: dict[str, Any], reason: str) -> None:
    # accumulate=fp32 is the default, so only an explicit bf16 is refused
    with pytest.raises(RequestError, match=reason):
        RunSpec(model=MODEL, layout=LayoutSpec(**layout), workload=WorkloadSpec(**workload))
