"""The form of a run: its choice stays if parts are not drawn, and typing is not interrupted."""

from __future__ import annotations

from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

from pages.shared.service import Service
from tests.pages.opened import link
from tests.pages.stand_in import service
from tests.patience import PATIENCE_S


def _script(service):  # only its source is executed, so it has only the names that it imports
    import streamlit as st

    from pages.lab import page
    from tests.pages.stand_in import know_pages

    know_pages()
    if "away" not in st.query_params:
        page.show(service)


@pytest.fixture
def app(tmp_path: Path) -> AppTest:
    parts: Service = service(tmp_path / "runs")[0]
    return AppTest.from_function(_script, args=(parts,), default_timeout=PATIENCE_S).run()


def number(app: AppTest, label: str):
    return next(n for n in app.number_input if n.label == label)


def levers(app: AppTest, unfolded: bool) -> None:
    app.session_state["unfolded/form-levers"] = unfolded
    app.run()
    assert not app.exception


def zero(app: AppTest):
    return next(c for c in app.segmented_control if c.label == "ZeRO stage")


def test_choices_stay_after_their_widgets_are_gone(app: AppTest):
    number(app, "Microbatches").set_value(6).run()
    levers(app, unfolded=True)
    zero(app).set_value(2).run()
    levers(app, unfolded=False)
    assert any(e.label == "Memory optimizations: ZeRO 2" for e in app.expander)

    before = link(app, "spec")
    app.query_params["away"] = ""
    app.run()
    assert not app.number_input
    # Streamlit would iterate over each entry for each field on another page.
    assert [key for key in app.session_state if key.startswith("form/")] == ["form/held"]
    del app.query_params["away"]
    app.run()
    assert link(app, "spec") == before
    assert "~m6~" in before
    assert number(app, "Microbatches").value == 6
    levers(app, unfolded=True)
    assert zero(app).value == 2


def test_unchanged_fields_are_not_written_while_the_user_types(app: AppTest):
    number(app, "Microbatches").set_value(6).run()
    assert not any(field.proto.set_value for field in app.number_input)
    app.query_params["spec"] = link(app, "spec").replace("dp2.", "dp1.")
    app.run()
    assert [field.label for field in app.number_input if field.proto.set_value] == ["Data (dp)"]
    assert number(app, "Data (dp)").value == 1
