"""What a new reader meets first: three ways in, a finished run, and well-known runs by link."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from urllib.parse import urlencode

import pytest

from engine import store
from engine.predict.run import predict
from engine.tables import compared
from pages.charts.words import words
from pages.plan.found import found
from pages.plan.presets import presets
from pages.plan.request import of_link, to_link
from pages.shared.service import EXAMPLE
from tests.pages.opened import click, link, opened, text
from tests.pages.stand_in import service

ROOT = Path(__file__).parents[2]
PRESETS = presets(words("en"))
WELCOME = "Shardscope trains a Transformer as real processes"


def test_the_first_press_shows_a_finished_run_where_none_was_made(tmp_path: Path) -> None:
    app = opened("lab", service(tmp_path)[0])
    assert WELCOME in text(app)
    click(app, "See a finished run")
    assert link(app, "run") == EXAMPLE
    assert "Measured: gpt-tiny on dp2.tp2.pp2, 1F1B" in text(app)
    assert "This run comes with Shardscope" in text(app)
    assert WELCOME not in text(app)


def test_who_opens_a_link_is_not_welcomed(tmp_path: Path) -> None:
    assert WELCOME not in text(opened("lab", service(tmp_path)[0], spec="gpt-tiny~dp1.tp2.pp2~1f1b"))
    assert WELCOME not in text(opened("lab", service(tmp_path)[0], run=EXAMPLE))


def test_a_run_of_the_reader_does_not_replace_the_example(tmp_path: Path) -> None:
    shipped = service(tmp_path)[0].saved(EXAMPLE)
    assert shipped is not None
    store.save(store.load(shipped), tmp_path / EXAMPLE)
    assert service(tmp_path)[0].saved(EXAMPLE) == shipped


@pytest.mark.parametrize("table", ["memory_peak", "traffic"])
def test_the_example_is_as_this_program_predicts(tmp_path: Path, table: str) -> None:
    """Otherwise it is of an older program: `make example` makes it again."""
    shipped = service(tmp_path)[0].saved(EXAMPLE)
    assert shipped is not None
    run = store.load(shipped)
    both = compared(table, run.tables[table], predict(run.spec).tables[table])
    numbers = [name.removesuffix("_measured") for name in both if name.endswith("_measured")]
    assert numbers
    for name in numbers:
        assert both[f"{name}_measured"].equals(both[f"{name}_predicted"]), f"{table}, {name}: make example"


@pytest.mark.parametrize("name", PRESETS)
def test_a_well_known_run_has_a_link_and_fits(name: str) -> None:
    request = PRESETS[name]
    assert of_link(to_link(request)) == request
    assert found(replace(request, accounting="zero2020")).feasible


def test_the_readme_links_to_every_well_known_run() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for name, request in PRESETS.items():
        assert f"[{name}](http://localhost:8501/plan?{urlencode(to_link(request))})" in readme, name
