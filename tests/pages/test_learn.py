"""The Learn page without a browser: every lesson is drawn, its numbers are the engine's, and answers are judged by them."""

from __future__ import annotations

from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

from pages.learn.lessons import LESSONS
from pages.shared.service import Service
from tests.pages.stand_in import Queue, service
from tests.pages.test_lab import text

NUMBERS = range(1, len(LESSONS) + 1)


def script(service):  # its source alone is run, so it has no names but those it imports
    from pages.learn.page import show

    show(service)


@pytest.fixture
def parts(tmp_path: Path) -> tuple[Service, Queue]:
    return service(tmp_path / "runs")


def page(service: Service, **link: str) -> AppTest:
    app = AppTest.from_function(script, args=(service,), default_timeout=20)
    for name, value in link.items():
        app.query_params["with" if name == "set" else name] = value
    app.run()
    assert not app.exception, app.exception[0].value
    return app


@pytest.mark.parametrize("number", NUMBERS)
def test_every_lesson_is_drawn_and_asks(parts: tuple[Service, Queue], number: int):
    app = page(parts[0], lesson=str(number))
    assert "Predict before you look" in text(app)
