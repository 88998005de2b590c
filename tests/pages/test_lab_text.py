"""Generated text on the Lab page, and the weights that it is generated from."""

from __future__ import annotations

from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

from engine import store
from pages.shared.service import Service
from tests.pages.opened import click, link, opened, text
from tests.pages.stand_in import PAIR, Queue, saved, service


@pytest.fixture
def parts(tmp_path: Path) -> tuple[Service, Queue]:
    return service(tmp_path / "runs")


def page(service: Service, **link: str) -> AppTest:
    return opened("lab", service, **link)


def unfold(app: AppTest) -> None:
    """Open the part of the form that has the button."""
    app.session_state["unfolded/form-rest"] = True
    app.run()


def test_text_from_the_trained_weights_is_one_press_away(parts: tuple[Service, Queue]):
    app = page(parts[0])
    click(app, "Generate text")
    assert link(app, "spec") == "gpt-mini~dp2.tp2.pp2~1f1b~m4~b2~n20~r0.003~e1~yVGhlIHBpcGVsaW5lIA~w100~v0.8~s~jtrained"
    click(app, "Run on 8 processes")
    [spec] = [state.spec for state in parts[1].states.values()]
    assert (spec.workload.weights, spec.generate.prompt, spec.generate.skip_training) == ("trained", "The pipeline ", True)


@pytest.mark.parametrize(
    "spec",
    [
        "gpt-medium~dp1.tp1.pp4~interleaved~m4~b2~n20~r0.003~e0~c3",
        "gpt-medium~dp1.tp1.pp4~interleaved~m8~b2~n20~r0.003~e0~c4",
        "gpt-medium~dp1.tp16.pp1~1f1b~m4~b2~n20~r0.003~e0",
        "gpt-tiny~dp4.tp4.pp4~1f1b~m4~b2~n20~r0.003~e0",
    ],
)
def test_text_from_the_trained_weights_can_run_from_any_form(parts: tuple[Service, Queue], spec: str):
    app = page(parts[0], spec=spec)
    unfold(app)
    assert "could not be read" not in text(app)
    click(app, "Generate text with the trained weights")
    assert link(app, "spec").startswith("gpt-mini~dp2.tp2.pp2~1f1b~")
    click(app, "Run on 8 processes")
    [state] = parts[1].states.values()
    assert state.spec.generate.prompt == "The pipeline "


def test_text_from_the_trained_weights_keeps_a_layout_that_fits(parts: tuple[Service, Queue]):
    app = page(parts[0], spec="gpt-tiny~dp1.tp2.pp2~gpipe~m4~b2~n20~r0.003~e0")
    unfold(app)
    click(app, "Generate text with the trained weights")
    assert link(app, "spec").startswith("gpt-mini~dp1.tp2.pp2~gpipe~")


def test_another_model_has_no_trained_weights(parts: tuple[Service, Queue]):
    app = page(parts[0], spec="gpt-mini~dp2.tp2.pp2~1f1b~jtrained")
    next(s for s in app.selectbox if s.label == "Size").select("small").run()
    assert not app.exception
    assert link(app, "spec").startswith("gpt-small~dp2.tp2.pp2")
    assert not link(app, "spec").endswith("trained")
    wrong = page(parts[0], spec="gpt-tiny~dp2.tp2.pp2~1f1b~jtrained")
    assert "trained weights are those of gpt-mini" in text(wrong)
    click(wrong, "weights=drawn")
    assert link(wrong, "spec") == "gpt-tiny~dp2.tp2.pp2~1f1b~m4~b2~n20~r0.003~e0"


def test_the_text_that_a_run_generated_is_told_apart_from_its_prompt(parts: tuple[Service, Queue]):
    folder = saved(parts[0].home, PAIR)
    run = store.load(folder)
    run.summary["generated"] = {"prompt": "The ", "tokens": [101, 110, 100], "text": "end"}
    store.save(run, parts[0].home / "told")
    shown = text(page(parts[0], run="told"))
    assert 'class="ss-new">end</span>' in shown
