"""The tasks of the Learn page: several choices of each are right, and the engine judges them without a recording."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from streamlit.testing.v1 import AppTest

from engine.launch.recording import client
from engine.ledger.keep import Key, LedgerFolder
from engine.ledger.store import ledger_store
from pages.charts.units import percent
from pages.charts.words import words
from pages.learn.lessons import TASKS
from pages.learn.outcome import outcome, outcomes
from pages.learn.task import judged
from pages.shared.service import Service
from tests.pages.opened import click, opened, text
from tests.pages.stand_in import Queue, service


@pytest.fixture
def parts(tmp_path: Path) -> tuple[Service, Queue]:
    return service(tmp_path / "runs")


def page(service: Service, lesson: str) -> AppTest:
    app = opened("learn", service, lesson=lesson)
    assert not app.exception, app.exception[0].value
    return app


# The values of the choices that are right, in the order of the task's settings.
_CHEAP = "layernorm+mlp_act"
RIGHT = {
    1: {f"bf16 bf16 {recompute} {size}" for recompute in ("none", _CHEAP) for size in (1, 2)},
    3: {"1 8", "2 2", "2 4", "4 1", "4 2", "8 1"},
    4: {"2 none 1", f"2 {_CHEAP} 1", f"2 {_CHEAP} 2"},
    5: {"interleaved×2 32", "interleaved×3 32", "interleaved×4 32"},
    7: {"3 none 1", f"3 {_CHEAP} 1", f"3 {_CHEAP} 2"},
    8: {f"{_CHEAP} 3", f"{_CHEAP} 4"},
    9: {f"fused whole {_CHEAP}", f"fused chunks {_CHEAP}"},
    10: {f"4 {rest} {_CHEAP}" for rest in ("1 3", "2 3", "4 0", "4 1", "4 3")},
    11: {f"4 ring {_CHEAP}", "8 ring none", f"8 ring {_CHEAP}"},
    12: {"8 1 none 1", "8 3 none 1"},
}


@pytest.mark.parametrize("number", TASKS)
def test_a_task_accepts_several_choices_and_tells_why_others_fail(number: int):
    """The first choice is not right, and each goal that is missed says so with a number."""
    task, say = TASKS[number], words("en")
    choices = task.choices()
    right = [choice for choice in choices if all(goal.met for goal in judged(task, choice, say))]
    assert {" ".join(map(str, choice.values())) for choice in right} == RIGHT[number]
    assert 2 <= len(right) < len(choices) / 2
    assert task.first not in right
    missed = [goal.said for goal in judged(task, task.first, say) if not goal.met]
    assert missed
    assert all(any(letter.isdigit() for letter in said) for said in missed)
    assert len(task.hints) == 3


def test_full_recomputation_misses_a_goal_of_its_own():
    task, say = TASKS[9], words("en")
    goals = judged(task, {"attention": "fused", "loss": "chunks", "recompute": "full"}, say)
    assert next(goal.said for goal in goals if not goal.met) == "All layers are computed again; no full recomputation is wanted."


@pytest.mark.parametrize("number", TASKS)
def test_no_choice_of_a_task_needs_a_recording(number: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """A reader would wait for it. Here nothing was recorded, and a recording is refused."""
    task = TASKS[number]

    def refuse(keys: Iterable[Key]) -> None:
        pytest.fail(f"not shipped: {list(keys)}")

    monkeypatch.setattr(ledger_store(), "recorded", LedgerFolder(tmp_path))
    monkeypatch.setattr(client, "_record", refuse)
    for choice in task.choices():
        outcomes([task.spec(choice)], task.device)


def test_a_task_judges_the_readers_choice_opens_hints_and_is_remembered(parts: tuple[Service, Queue]):
    app = page(parts[0], lesson="5")
    assert "0 of 10 tasks solved" in text(app)
    before = outcome(TASKS[5].spec(TASKS[5].first), TASKS[5].device)
    assert f"at most {percent(before.bubble / 2)} is wanted" in text(app)
    slider(app, "Schedule").set_value("interleaved×2").run()
    slider(app, "Microbatches m", task=True).set_value(32).run()
    assert not app.exception, app.exception[0].value
    assert "Solved. Other choices may do it too: try one." in [element.value for element in app.success]
    assert "1 of 10 tasks solved" in text(app)
    for number in (1, 2, 3):
        assert f"**Hint {number}.**" not in text(app)
        click(app, f"Show hint {number} of 3")
        assert f"**Hint {number}.**" in text(app)
    click(app, "The three together")
    assert "1 of 10 tasks solved" in text(app)


def test_a_task_says_what_does_not_go_together(parts: tuple[Service, Queue]):
    app = page(parts[0], lesson="10")
    slider(app, "pp").set_value(4).run()
    assert "tp=8 × pp=4 is more than 16 devices" in text(app)


def slider(app: AppTest, label: str, task: bool = True) -> Any:
    return [one for one in app.select_slider if one.label == label][-1 if task else 0]
