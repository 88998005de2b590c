"""Pages show a run of 16 ranks, 256 microbatches and 10,000 steps, and a choice of any size that a spec can have."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine import store
from pages.charts.look import View
from pages.runs.report import report
from pages.shared.service import Service
from tests.charts.long import long_run
from tests.pages.opened import opened, text
from tests.pages.stand_in import service


@pytest.fixture
def served(tmp_path: Path) -> Service:
    made, _ = service(tmp_path / "runs")
    store.save(long_run(), tmp_path / "runs" / "long")
    return made


def test_the_lab_shows_every_chart_of_a_long_run(served: Service) -> None:
    app = opened("lab", served, run="long")
    assert not app.exception
    for subject in ("Memory of every rank", "Memory over one step", "Traffic of every rank", "Traffic matrix", "Training"):
        assert subject in text(app)


def test_a_report_of_a_long_run_has_every_chart(served: Service) -> None:
    made = report("long", long_run(), View("light", "en"))
    assert made.count("<figure") == made.count("<svg") == 7


SIZES = {  # (choice in a link, texts of the Lab)
    "many replicas": ("gpt-tiny~dp16384.tp1.pp1~1f1b~m4~b2~n20~r0.003~e0", ["16,384 ranks", "Every rank needs"]),
    "many of everything": (
        "gpt3-175b~dp65536.tp32.pp96~1f1b~m8~b2~n20~r0.003~e0",
        [
            "201,326,592 ranks",
            "The ranks of stage 0 will be fullest: 8.68 GiB",
            "The events of one microbatch are not listed: the events",
        ],
    ),
    "many microbatches": (
        "gpt.l8.h64.a4.v256.s64.f0~dp1.tp1.pp8~1f1b~m65536~b2~n20~r0.003~e0",
        ["The bubble takes 0.0% of 196629 units of time", "2,883,584 passes and messages", "will be fullest"],
    ),
    "a schedule too long for memory": (
        "gpt.l1024.h64.a4.v256.s64.f0~dp1.tp1.pp1024~zb-h1~m65536~b2~n20~r0.003~e0",
        ["memory is computed from at most 1,000,000", "Its timeline is not drawn"],
    ),
    "too many bytes": (
        "gpt.l1024.h65536.a1024.v256.s1000000.f0~dp1.tp1.pp1~gpipe~m65536~b4096~n20~r0.003~e0",
        ["memory is shown only up to 2^63 bytes"],
    ),
}


@pytest.mark.parametrize("name", SIZES)
def test_a_choice_of_any_size_is_predicted_or_refused_with_the_arithmetic(served: Service, name: str) -> None:
    code, said = SIZES[name]
    app = opened("lab", served, spec=code)
    assert not app.exception
    assert all(part in text(app) for part in said), text(app)[-3_000:]


def test_compare_shows_what_it_can_of_choices_of_any_size(served: Service) -> None:
    choices = [SIZES[name][0] for name in ("many replicas", "many microbatches", "a schedule too long for memory")]
    app = opened("compare", served, **{"with": "*".join(choices)})
    assert not app.exception
    assert "Its timeline is not drawn" in text(app)
    assert "memory is computed from at most 1,000,000" in text(app)


def test_a_walk_through_very_many_replicas_names_some_ranks_of_each_group(served: Service) -> None:
    """Event 3 is the reduction of gradients over all replicas. The replica is chosen in a number field."""
    app = opened("lab", served, spec=SIZES["many replicas"][0], walk="0.3.16000.0")
    assert not app.exception
    assert next(n.value for n in app.number_input if n.label == "Replica (dp)") == 16_000
    assert "with ranks 0, 1, 2, 3" in text(app)
    assert "31 and 16,351 more" in text(app)
