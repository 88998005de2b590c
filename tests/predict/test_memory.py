"""Predicted memory equals that of real runs on every rank, and every number is the sum of its terms."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from engine.grid import Grid
from engine.predict.bulk.memory import fullest
from engine.predict.memory import SYMBOLS, curve_table, memory, peak_table
from engine.predict.memory.shortened import Shortened
from engine.predict.memory.stages import Stages
from engine.spec import GenerateSpec, RunSpec, WorkloadSpec
from engine.tables import SCHEMAS
from engine.terms import total
from tests.covering import covering, title
from tests.predict.test_agreement import assert_equal_totals
from tests.runs import Runs, small


def spec(code: str, schedule: Any = "1f1b", layout: dict[str, Any] | None = None, **rest: Any) -> RunSpec:
    made = small(code, schedule, **rest)
    return made.model_copy(update={"layout": made.layout.model_copy(update=layout or {})})


def generating(code: str, prompt: str = "def f(x", **rest: Any) -> RunSpec:
    asked = GenerateSpec(prompt=prompt, new_tokens=6, skip_training=True)
    return small(code, **rest).model_copy(update={"generate": asked})


ALL_AXES = spec("dp2.tp2.pp2", microbatches=3, model={"vocab": 257})
OTHERS = (  # than those of tests/covering.py
    ALL_AXES,
    generating("tp2.pp2", model={"family": "llama", "kv_heads": 2}),
    generating("pp2", precision="bf16"),
    generating("pp2", prompt="d"),
)


def called(case: RunSpec) -> str:
    return f"{title(case)}-generating" if case.generate.skip_training else title(case)


@pytest.mark.parametrize("case", OTHERS, ids=called)
def test_every_ranks_total_is_equal_to_the_byte(runs: Runs, case: RunSpec) -> None:
    """test_agreement.py has the same of the covering cases."""
    assert_equal_totals(runs.result(case).tables["memory_peak"], peak_table(case))


@pytest.mark.usefixtures("recorded_ledgers")
@pytest.mark.parametrize("case", [*covering(), *OTHERS], ids=called)
class TestAgainstARealRun:
    def test_the_peak_is_in_the_action_that_it_names(self, runs: Runs, case: RunSpec) -> None:
        curve = runs.result(case).tables["memory_curve"]
        for peak in memory(case).peaks:
            rank = peak.stage * case.layout.dp * case.layout.tp
            points = curve[curve["rank"] == rank].groupby(["t_ns", "action"])["bytes"].sum()
            assert points.groupby("action").max()[peak.action] == points.max()

    def test_terms_add_up_and_their_symbols_are_explained(self, runs: Runs, case: RunSpec) -> None:
        for peak in memory(case).peaks:
            for category, terms in peak.terms.items():
                assert total(terms) == peak.bytes[category]
                assert all(term.value > 0 for term in terms)
                assert all(isinstance(factor.value, int) for term in terms for factor in term.factors)


def test_the_curve_reaches_the_peak_and_returns_to_the_memory_between_steps() -> None:
    case = ALL_AXES
    for rank in (0, 7):
        curve = curve_table(case, rank)
        assert list(curve.columns) == list(SCHEMAS["memory_curve"])
        totals = curve.groupby("t_ns", sort=True)["bytes"].sum()
        points = curve.groupby(curve.index // 6)["bytes"].sum()
        assert points.max() == memory(case).peaks[rank // 4].total
        assert points.iloc[0] == points.iloc[-1]
        assert totals.index.is_monotonic_increasing


def test_bulk_results_equal_those_of_each_layout() -> None:
    model = small().model.model_copy(update={"layers": 12, "hidden": 256, "seq": 128})
    made = []
    for schedule, chunks in (("1f1b", 1), ("gpipe", 1), ("zb-h1", 1), ("interleaved", 2)):
        for code, zero, recompute in (
            ("dp2.tp2.pp2", 0, "none"),
            ("dp4.pp3", 1, "full"),
            ("dp2.tp4.pp2", 3, "layernorm+mlp_act"),
        ):
            made.append(
                spec(
                    code, schedule, layout={"zero": zero, "recompute": recompute}, chunks=chunks, microbatches=6,
                    microbatch_size=2, model=dict(model),
                )
            )  # fmt: skip
    bytes_, stages = fullest(model, WorkloadSpec(), Grid.of(made))
    for one, found, stage in zip(made, bytes_, stages, strict=True):
        peaks = memory(one).peaks
        highest = max(peak.total for peak in peaks)
        assert abs(found / highest - 1) <= 0.005, title(one)
        assert peaks[stage].total >= 0.995 * highest, title(one)


@pytest.mark.usefixtures("recorded_ledgers")
def test_every_symbol_is_in_the_glossary() -> None:
    for case in (*covering(), *OTHERS):
        for peak in memory(case).peaks:
            for terms in peak.terms.values():
                for term in terms:
                    for factor in term.factors:
                        letters = factor.symbol.replace("tp", " ").replace("dp", " ")
                        known = set("".join(SYMBOLS)) | set(" ·/+−()⌈⌉0123456789")
                        assert set(letters) <= known, factor.symbol


def test_a_block_that_a_message_uses_is_kept_until_the_message_is_sent() -> None:
    """An encoder's stage makes the embeddings of source and target as one block (2 · B · S · H), keeps the first half for W and
    sends the second. The last microbatch's message goes at the step, after its W: until then the block is there.
    """
    case = spec("dp2.pp2", "zb-h1", layout={"zero": 1}, microbatches=3, model={"family": "transformer", "decoder_layers": 2})
    model, size = case.model, case.workload.microbatch_size
    stream = size * model.seq * model.hidden * 4
    curve = curve_table(case, 0)
    at_tie = curve[(curve["action"] == "tie") & (curve["category"] == "communication")]["bytes"]
    assert at_tie.tolist() == [2 * stream + stream], "the block, and the encoder's output beside it"
    [*_, end] = curve[curve["category"] == "communication"]["bytes"]
    assert end == 0


@pytest.mark.parametrize("layers", [4, 6, 12])
def test_the_encoders_gradient_that_layers_hand_on_has_one_name_where_it_is_allocated_and_freed(layers: int) -> None:
    """The decoder's layers add it up. Two, three or six of them, three in a ledger: none frees a block that is not there."""
    case = spec("pp2", "zb-h1", model={"family": "transformer", "layers": layers}, precision="bf16")
    walk = Stages(case, Shortened(case.workload.microbatches)).walk(stage=1)
    for number in range(len(walk.of)):
        counts = Counter(walk.before(number))
        for _, events in walk.trace(number).parts:
            for sign, kind in events:
                counts[kind] += sign
                assert counts[kind] >= 0, (number, kind)
