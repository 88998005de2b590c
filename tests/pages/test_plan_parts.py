"""The parts of the model that Plan plans for: chosen as on the Lab, and kept in the link."""

from __future__ import annotations

from pathlib import Path

from engine import catalog
from pages.shared.links import model_of_link
from tests.pages.opened import link, opened, text
from tests.pages.stand_in import service

REQUEST = {"model": "llama3-8b", "device": "h100-80gb", "ranks": "8", "batch": "8"}


def unfolded(tmp_path: Path):
    app = opened("plan", service(tmp_path)[0], **REQUEST)
    app.session_state["unfolded/plan-parts"] = True
    app.run()
    assert not app.exception
    return app


def test_a_part_is_chosen_and_the_plan_is_for_that_model(tmp_path: Path) -> None:
    """The part is that of Qwen 3, whose ledgers come with the program: others would be recorded first."""
    app = unfolded(tmp_path)
    app.selectbox(key="plan/part/qk_norm").set_value("head").run()
    assert not app.exception
    assert model_of_link(link(app, "model")) == catalog.model("llama3-8b").model_copy(update={"qk_norm": "head"})
    assert "Parts: Norm of queries and keys" in [expander.label for expander in app.expander]
    app.selectbox(key="plan/part/qk_norm").set_value(None).run()
    assert link(app, "model") == "llama3-8b"


def test_a_part_that_does_not_fit_is_refused_with_the_reason(tmp_path: Path) -> None:
    app = unfolded(tmp_path)
    app.number_input(key="plan/part/rotary_width").set_value(7).run()
    assert not app.exception
    assert "rotary positions turn pairs of numbers" in text(app)
    assert link(app, "model") == "llama3-8b"
