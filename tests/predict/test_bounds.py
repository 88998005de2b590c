"""Predictions of any size that a spec may have: what is alike is told once, and what is too large is refused with arithmetic."""

from __future__ import annotations

import re
from itertools import pairwise
from typing import Any

import pandas as pd
import pytest

from engine import catalog
from engine.predict.memory import memory
from engine.predict.memory.shortened import shortened
from engine.predict.run import predict
from engine.predict.traffic import traffic
from engine.schedule import SCHEDULES, entries
from engine.schedule.orders import enough_microbatches
from engine.spec import SCHEDULE_FACTS, LayoutSpec, ModelSpec, RequestError, RunSpec, ScheduleName, WorkloadSpec
from engine.tables import members
from engine.topology import MOST_MEMBERS, Mesh
from tests.predict.random_specs import random_specs


def asked(code: str, microbatches: int = 4, model: ModelSpec | None = None, **layout: Any) -> RunSpec:
    return RunSpec(
        model=model or catalog.model("gpt-tiny"),
        layout=LayoutSpec(**LayoutSpec.degrees(code), **layout),
        workload=WorkloadSpec(microbatches=microbatches),
    )


DEEP = ModelSpec(layers=1024, hidden=64, heads=4)
PLAIN = [name for name, facts in SCHEDULE_FACTS.items() if facts.plain]


def with_many_microbatches(spec: RunSpec) -> RunSpec:
    """As many as make a schedule repeat itself."""
    layout, more = spec.layout, spec.workload.microbatches + 3 * spec.layout.pp
    if not layout.facts.fits_microbatches(layout.pp, more):  # its rounds have to stay whole
        more = 6 * layout.pp
    return RunSpec(model=spec.model, layout=layout, workload=spec.workload.model_copy(update={"microbatches": more}))


def test_what_repeats_brings_no_other_peak() -> None:
    """Of the same specs, with what repeats left out and without: same bytes, same action, same sum."""
    seen = set[ScheduleName]()
    for spec in map(with_many_microbatches, random_specs(35, seed=5, most=4)):
        name, m = spec.layout.schedule, spec.workload.microbatches
        fewest = entries(spec.layout, int(enough_microbatches(name, spec.layout.pp, m)) + 2)
        for one, other in zip(memory(spec).peaks, memory(spec, all_of=0, most=fewest).peaks, strict=True):
            assert (one.bytes, one.action) == (other.bytes, other.action), spec
            if name in PLAIN:
                assert one.terms == other.terms, spec
        seen.add(name)
    assert seen == set(SCHEDULES)


@pytest.mark.parametrize("schedule", PLAIN)
def test_a_simple_schedule_is_as_quickly_gone_through_whatever_its_length(schedule: ScheduleName) -> None:
    """Told by what is gone through, not by the clock."""
    several = {shortened(asked("pp8", m, DEEP, schedule=schedule)).microbatches for m in (10_000, 65_536)}
    assert len(several) == 1
    assert several.pop() < 20


def test_many_stages_and_microbatches_have_all_answers_but_a_timeline() -> None:
    result = predict(asked("pp128", 65_536, DEEP))
    assert result.summary["bubble"] == pytest.approx(127 / (65_536 + 127))
    assert result.summary["peak_action"] == "B chunk 0 microbatch 0"
    assert set(result.tables) == {"memory_peak", "traffic"}
    in_flight = [peak.bytes["activations"] for peak in memory(asked("pp128", 65_536, DEEP)).peaks[1:-1]]
    steps = {one - other for one, other in pairwise(in_flight)}
    assert len(steps) == 1, "each stage holds one microbatch fewer than the one before"


def test_very_many_ranks_are_told_by_one_of_each_stage() -> None:
    spec = asked("dp65536.tp32.pp96", 8, catalog.model("gpt3-175b"), zero=1)
    result, mesh = predict(spec), Mesh({"dp": 65_536, "tp": 32, "pp": 96})
    assert set(result.tables["traffic"]["rank"]) == set(mesh.listed)
    assert set(result.tables["memory_peak"]["rank"]) >= set(mesh.listed)
    assert all(table.memory_usage(deep=True).sum() < 2**21 for table in result.tables.values())
    along_dp = result.tables["traffic"].query("axis == 'dp' and rank == 0")["group"].unique().tolist()
    assert along_dp == [f"0,32,…,{65_535 * 32}"]
    assert members(along_dp[0]) == (0, 32, 65_535 * 32)


def test_all_layouts_of_1024_ranks_have_every_rank() -> None:
    assert all(Mesh({"dp": dp, "pp": 1024 // dp}).all_listed for dp in (1, 32, 1024))
    assert not Mesh({"dp": 2048}).all_listed
    assert MOST_MEMBERS == 1024**2


def test_any_rank_can_be_asked_for() -> None:
    """Its rows are those that it has where all are told; of very many ranks its groups are written out."""
    for spec in random_specs(10, seed=6, most=4):
        every = traffic(spec)
        for rank in (0, spec.layout.ranks - 1):
            pd.testing.assert_frame_equal(traffic(spec, [rank]), every[every["rank"] == rank].reset_index(drop=True))
    [group] = traffic(asked("dp4096"), [5]).query("phase == 'backward'")["group"].unique()
    assert members(group) == tuple(range(4096))


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        (
            asked("pp1024", 65_536, DEEP, schedule="zb-h1"),
            "has 7,364,592 passes and messages, and memory is computed from at most",
        ),
        (
            RunSpec(
                model=ModelSpec(layers=1024, hidden=65_536, heads=1024, seq=1_000_000),
                layout=LayoutSpec(schedule="gpipe"),
                workload=WorkloadSpec(microbatches=65_536, microbatch_size=4096),
            ),
            "bytes, and memory is shown only up to 2^63 bytes",
        ),
    ],
    ids=["actions", "bytes"],
)
def test_what_is_too_large_is_refused_with_the_arithmetic(spec: RunSpec, said: str) -> None:
    with pytest.raises(RequestError, match=re.escape(said)):
        predict(spec)
