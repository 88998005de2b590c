"""Stepping through one microbatch's path, in real runs and in predictions."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

from engine.predict.traffic import traffic as predicted
from engine.schedule import plan
from engine.schedule.timeline import simulate, textbook
from engine.spec import LayoutSpec, RunSpec, WorkloadSpec
from engine.tables import RunResult
from pages.charts.units import in_bytes
from pages.charts.words import words
from pages.lab.events import Event, MicrobatchPath, walk
from pages.lab.sentences import headline, sentences
from tests.pages.opened import link, text
from tests.pages.stand_in import saved, service
from tests.pages.test_lab import page
from tests.runs import Runs, small

SAY = words("en")
PLAIN = small("dp2.tp2.pp2", microbatches=3)
CHUNKED = small("dp2.tp1.pp2", "zb-v", chunks=2, microbatches=4)


def measured_path(result: RunResult, path: MicrobatchPath) -> list[Event]:
    return walk(result.spec, result.tables["traffic"], path, result.tables["spans"])


def predicted_path(spec: RunSpec, path: MicrobatchPath) -> list[Event]:
    schedule = plan(spec.layout, spec.workload.microbatches, spec.model.parts.tied)
    return walk(spec, predicted(spec), path, replayed=simulate(schedule, textbook(spec.layout)))


def names(events: list[Event]) -> list[str]:
    return [headline(event, SAY) for event in events]


def test_a_microbatch_runs_forward_then_backward_then_the_step_ends(runs: Runs):
    events = measured_path(runs.result(PLAIN), MicrobatchPath(1, dp=1, tp=0))
    # Replica 1, slice 0: rank 2 on stage 0 and rank 6 on stage 1.
    actions = [headline(e, SAY) for e in events if not e.is_call]
    assert actions == [
        "F on rank 2", "send activation on rank 2", "recv activation on rank 6", "F on rank 6", "B on rank 6",
        "send gradient on rank 6", "recv gradient on rank 2", "B on rank 2", "reduce on rank 6", "reduce on rank 2",
        "tie on rank 2", "tie on rank 6", "step on rank 2", "step on rank 6",
    ]  # fmt: skip
    assert {e.action.microbatch for e in events if not e.once} == {1}
    assert names(events)[:2] == ["F on rank 2", "7 × tp all_reduce"]  # embedding, and two in each of three layers


@pytest.mark.parametrize("spec", [PLAIN, CHUNKED], ids=["1f1b", "zb-v"])
def test_each_event_comes_after_what_it_needs(runs: Runs, spec: RunSpec):
    """By the run's clock: no message is received before it was sent, and no pass begins before its input was received."""
    for microbatch in range(spec.workload.microbatches):
        events = [e for e in measured_path(runs.result(spec), MicrobatchPath(microbatch)) if not e.is_call]
        assert all(e.start is not None and e.end is not None and e.start <= e.end for e in events)
        handed: dict[tuple[str, int], float] = {}
        ready: dict[tuple[int, str], float] = {}  # (chunk, input of a pass) → when it was received
        for e in events:
            assert e.start is not None
            assert e.end is not None
            chunk, kind = e.action.chunk, e.action.kind
            if kind == "send":
                handed[e.action.flow, chunk + (1 if e.action.flow == "activation" else -1)] = e.start
            elif kind == "recv":
                assert e.end >= handed.pop((e.action.flow, chunk))
                ready[chunk, e.action.flow] = e.end
            elif kind in ("F", "B", "I", "W"):
                needed = {"F": "activation", "W": "I"}.get(kind, "gradient")
                assert e.start >= ready.get((chunk, needed), 0.0)
                ready[chunk, kind] = e.end
        assert not handed, "every message that was sent is received"


@pytest.mark.parametrize("spec", [PLAIN, CHUNKED], ids=["1f1b", "zb-v"])
def test_paths_of_all_microbatches_add_up_to_the_traffic_table(runs: Runs, spec: RunSpec):
    result = runs.result(spec)
    mesh = spec.layout.mesh
    for dp in range(mesh.dp):
        counted: Counter[tuple] = Counter()
        for microbatch in range(spec.workload.microbatches):
            for e in measured_path(result, MicrobatchPath(microbatch, dp)):
                if (p := e.communication) and (not e.once or microbatch == 0):  # what happens once a step is in every path
                    for column in ("calls", "payload_bytes", "wire_bytes"):
                        counted[e.rank, p.axis, p.collective, p.phase, p.group, column] += getattr(p, column)
        table = {
            (r.rank, r.axis, r.collective, r.phase, tuple(map(int, r.group.split(","))), column): getattr(r, column)
            for r in result.tables["traffic"].itertuples()
            for column in ("calls", "payload_bytes", "wire_bytes")
            if (at := mesh.coordinate(r.rank)).dp == dp and at.tp == 0
        }
        assert {k: v for k, v in counted.items() if v} == {k: v for k, v in table.items() if v}


def test_sentences_have_the_numbers_of_the_run(runs: Runs):
    result = runs.result(PLAIN)
    spec, table = result.spec, result.tables["traffic"]
    by_event = {headline(e, SAY): " ".join(sentences(e, spec, SAY)) for e in reversed(measured_path(result, MicrobatchPath(1)))}
    of = table[(table["rank"] == 0) & (table["phase"] == "forward")].set_index("collective")
    share = int(of.at["all_reduce", "payload_bytes"]) // spec.workload.microbatches
    calls = int(of.at["all_reduce", "calls"]) // spec.workload.microbatches
    assert by_event["F on rank 0"].startswith("Rank 0 runs microbatch 1 forward through the embedding and layers 0–2.")
    assert f"Rank 0 makes {calls} calls of all_reduce along tp with rank 1" in by_event[f"{calls} × tp all_reduce"]
    assert f"{in_bytes(share)} of payload in total" in by_event[f"{calls} × tp all_reduce"]
    message = int(of.at["send", "payload_bytes"]) // spec.workload.microbatches
    assert "to rank 4 at stage 1" in by_event["send activation on rank 0"]
    assert f"The message is {in_bytes(message)}." in by_event["send activation on rank 0"]
    spans = result.tables["spans"].query("rank == 4 and kind == 'B' and microbatch == 1")
    assert f"From {spans['start_ns'].iloc[0] / 1e6:.3g}" in by_event["B on rank 4"]
    assert "layers 3–4 and the head" in by_event["B on rank 4"]


def test_a_predicted_path_has_the_events_and_the_bytes_of_the_run(runs: Runs):
    """Only its times differ: they are the textbook's."""
    for microbatch in range(PLAIN.workload.microbatches):
        planned = predicted_path(PLAIN, MicrobatchPath(microbatch))
        real = measured_path(runs.result(PLAIN), MicrobatchPath(microbatch))
        assert [(e.rank, e.action) for e in planned if not e.is_call] == [(e.rank, e.action) for e in real if not e.is_call]
        key = lambda e: (e.rank, str(e.action), e.communication)  # noqa: E731
        assert sorted((key(e) for e in planned if e.communication), key=str) == sorted(
            (key(e) for e in real if e.communication), key=str
        )
    first = predicted_path(PLAIN, MicrobatchPath(0))[0]
    assert (first.start, first.end) == (0.0, 1.0)
    assert sentences(first, PLAIN, SAY, in_units=True)[-1] == "From 0 to 1 units of time."


@pytest.mark.parametrize("zero", [0, 1, 2, 3])
@pytest.mark.parametrize(("schedule", "chunks"), [("1f1b", 1), ("interleaved", 2), ("zb-h1", 1), ("dualpipe-v", 2)])
def test_paths_add_up_to_the_predicted_traffic_with_every_lever(zero: int, schedule: str, chunks: int):
    layout = LayoutSpec(dp=2, tp=2, pp=2, schedule=schedule, chunks=chunks, zero=zero, sequence_parallel=True)
    spec = RunSpec(layout=layout, workload=WorkloadSpec(microbatches=4))
    table = predicted(spec)
    paths = [predicted_path(spec, MicrobatchPath(m)) for m in range(4)]
    own = sum(e.communication.wire_bytes for events in paths for e in events if e.communication and not e.once)
    once = sum(e.communication.wire_bytes for e in paths[0] if e.communication and e.once)
    assert own + once == table[table["rank"].isin([0, 4])]["wire_bytes"].sum()
    for events in paths:
        assert all(sentences(e, spec, SAY, in_units=True) and headline(e, SAY) for e in events)


# --------------------------------------------------------------------------------------------------------------- on the page

PAIR = RunSpec(layout=LayoutSpec(pp=2))


def press(app: AppTest, label: str) -> None:
    next(b for b in app.button if b.label == label).click().run()
    assert not app.exception


def test_next_shows_the_next_event_writes_the_link_and_chooses_the_rank(tmp_path: Path):
    parts = service(tmp_path / "runs")
    app = page(parts[0], spec="gpt-tiny~dp1.tp1.pp2~1f1b")
    assert "Microbatch 0, event 1 of " in text(app)
    assert "Nothing has run yet" in text(app)
    assert not link(app, "walk")
    press(app, "Next")
    press(app, "Next")
    assert link(app, "walk") == "0.2"
    assert link(app, "rank") == "1"
    assert "Rank 1 receives the activations of microbatch 0 from rank 0 at stage 0." in text(app)
    press(app, "Previous")
    assert (link(app, "walk"), link(app, "rank")) == ("0.1", "0")
    next(s for s in app.selectbox if s.label == "Microbatch").select(3).run()
    assert link(app, "walk") == "3.1"
    press(app, "Stop")
    assert not link(app, "walk")
    assert "Press Next" in text(app)


def test_a_link_restores_the_event_of_a_run(tmp_path: Path):
    parts = service(tmp_path / "runs")
    saved(parts[0].home, PAIR)
    app = page(parts[0], run="20261124-101500-run", walk="2.0")
    assert not app.exception
    assert "Rank 0 runs microbatch 2 forward through the embedding and layers 0–1." in text(app)
    assert "As measured." in text(app)
    assert text(app).count("Step through") == 1


@pytest.mark.parametrize("code", ["9.999", "x", "1", "1.2.3", "-1.0"])
def test_a_link_to_an_event_that_does_not_exist_is_no_error(tmp_path: Path, code: str):
    app = page(service(tmp_path / "runs")[0], spec="gpt-tiny~dp1.tp1.pp2~1f1b", walk=code)
    assert not app.exception
    assert "Step through" in text(app)
