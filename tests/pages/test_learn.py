"""The Learn page without a browser: every lesson is drawn, and the engine computes its numbers and answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from streamlit.testing.v1 import AppTest

from engine import catalog, store
from engine.devices import DEVICES
from engine.planner.advice import advice
from engine.planner.search import search
from engine.predict.traffic import traffic
from engine.schedule import plan
from engine.schedule.timeline import simulate, textbook
from engine.spec import LayoutSpec, RunSpec
from engine.topology import Mesh
from pages.charts.look import View
from pages.charts.units import in_bytes, percent, significant
from pages.charts.words import words
from pages.learn.lesson_state import LessonState
from pages.learn.lessons import LESSONS
from pages.learn.lessons.checklist import tries
from pages.learn.lessons.pipeline import layout_of
from pages.learn.lessons.together import SPEC, inside_nodes
from pages.learn.steps import done_by
from pages.shared.service import Service
from tests.pages.opened import click, link, opened, text
from tests.pages.stand_in import Queue, saved, service

NUMBERS = range(1, len(LESSONS) + 1)


@pytest.fixture
def parts(tmp_path: Path) -> tuple[Service, Queue]:
    return service(tmp_path / "runs")


def page(service: Service, **link: str) -> AppTest:
    app = opened("learn", service, **{"with" if name == "set" else name: value for name, value in link.items()})
    assert not app.exception, app.exception[0].value
    return app


@pytest.mark.parametrize("number", NUMBERS)
def test_every_lesson_and_its_question_are_drawn_in_chinese(parts: tuple[Service, Queue], number: int):
    """Tests below answer them in English."""
    app = page(parts[0], lesson=str(number), lang="zh")
    assert words("zh")("Predict before you look") in text(app)
    assert LESSONS[number - 1].title(words("zh")) in text(app)


def commit(app: AppTest, answer: str | float) -> str:
    """Give an answer. Returns the page's reply."""
    if isinstance(answer, str):
        app.radio[0].set_value(answer)
    else:
        app.number_input[0].set_value(answer)
    next(b for b in app.button if b.label == "Commit").click().run()
    assert not app.exception, app.exception[0].value
    return verdict(app)


def verdict(app: AppTest) -> str:
    said = [element.value for element in (*app.success, *app.warning)]
    return next((words for words in said if words.startswith(("Right: ", "You said "))), "")


def state(parts: tuple[Service, Queue], number: int) -> LessonState:
    return LessonState(number, LESSONS[number - 1], parts[0], View("light", "en"))


WORKED_OUT = [
    (n, turn) for n in NUMBERS if n != 6 for turn in range(len(LESSONS[n - 1].questions))
]  # a run answers those of lesson 6


@pytest.mark.parametrize(("number", "turn"), WORKED_OUT)
def test_right_and_wrong_answers_are_judged(parts: tuple[Service, Queue], number: int, turn: int):
    question = LESSONS[number - 1].questions[turn](state(parts, number))
    right = question.right
    assert right is not None
    wrong = next((c.name for c in question.choices if c.name != right), None) if question.choices else right * 1.5 + 1
    assert wrong is not None
    app = page(parts[0], lesson=str(number), set=f"turn-{turn}")
    assert "Predict before you look" in text(app)
    said = commit(app, right)
    assert said.startswith("Right: ")
    assert question.why in said
    given = wrong if isinstance(wrong, str) else f"{wrong:g}"
    said = verdict(page(parts[0], lesson=str(number), set=f"turn-{turn}~answer-{given}"))
    assert said.startswith("You said ")
    assert question.said in said


def test_answers_are_the_papers_own_figures(parts: tuple[Service, Queue]):
    """Rajbhandari et al. 2020, figure 1; Korthikanti et al. 2022, section 5; Huang et al. 2019: (p − 1) ÷ (m + p − 1)."""

    def right(number: int, turn: int) -> Any:
        return LESSONS[number - 1].questions[turn](state(parts, number)).right

    assert right(7, 0) == pytest.approx(16.6, abs=0.05)  # GB: 7.5 B parameters, 64 replicas, ZeRO 2
    assert right(8, 0) == pytest.approx(100 * 34 / (34 + 80), abs=1e-9)  # percent: 5·a·s/h is 80 in GPT-3
    assert right(8, 1) == pytest.approx(100 / 3)  # percent
    assert right(5, 0) == "stage0"
    assert right(5, 1) == pytest.approx(100 * 3 / 15)  # percent
    assert right(5, 2) == 16
    assert right(2, 0) == 16
    assert right(12, 0) == pytest.approx(12.9, abs=0.05)  # billion: Jiang et al. 2024 say 13 of 47


def test_formulas_show_the_numbers_of_the_choice(parts: tuple[Service, Queue]):
    shown = text(page(parts[0], lesson="5", set="schedule-gpipe~p-4~m-12"))
    assert "(4 − 1) ÷ (12 + 4 − 1)" in shown
    assert "= 20.0%" in shown
    assert "(4 − 1) ÷ 12" in shown
    assert "= 25.0%" in shown
    assert "Every stage keeps the activations of 12 at most" in shown
    count = catalog.model("gpt3-13b").parameters()
    assert f"16 · {count:,}" in text(page(parts[0], lesson="1", set="model-gpt3-13b"))


def test_the_lessons_bubble_equals_the_schedules(parts: tuple[Service, Queue]):
    for schedule in ("interleaved", "zb-v"):
        layout = layout_of(schedule, 4, 8)
        bubble = percent(simulate(plan(layout, 8), textbook(layout)).bubble)
        shown = text(page(parts[0], lesson="5", set=f"schedule-{schedule}~p-4~m-8"))
        assert f"The bubble takes {bubble} of" in shown
        assert f"= {bubble}" in shown


def test_an_invalid_choice_has_the_reason(parts: tuple[Service, Queue]):
    app = page(parts[0], lesson="5", set="schedule-dualpipe-v~p-8~m-4")
    assert "dualpipe-v needs at least one microbatch for each of its 2 × 8 chunks and has 4" in app.warning[0].value


def test_the_link_carries_lesson_choices_and_answer(parts: tuple[Service, Queue]):
    app = page(parts[0], lesson="5", set="schedule-zb-h1~p-2~m-4~turn-1")
    assert app.selectbox[0].value == "zb-h1"
    commit(app, 20.0)
    assert link(app, "lesson") == "5"
    assert link(app, "with") == "schedule-zb-h1~p-2~m-4~turn-1~answer-20"
    again = page(parts[0], lesson="5", set=link(app, "with"))
    assert again.success[0].value.startswith("Right: 20.0%")
    assert "1 of 12 answered" in text(again)


@pytest.mark.parametrize("code", ["p-5", "schedule-2f2b", "answer-stage9", "nonsense", "turn-x"])
def test_a_link_that_cannot_be_read_is_reported(parts: tuple[Service, Queue], code: str):
    app = page(parts[0], lesson="5", set=code)
    assert "could not be read" in app.warning[0].value
    assert link(app, "with") == "schedule-1f1b~p-4~m-6"


def test_the_list_opens_every_lesson_and_values_stay(parts: tuple[Service, Queue]):
    app = page(parts[0], lesson="4")
    control(app, "Ranks (tp)").set_value(4).run()
    click(app, "Pipeline parallelism")
    assert link(app, "lesson") == "5"
    next(b for b in app.button if b.label.startswith("4 ")).click().run()
    assert control(app, "Ranks (tp)").value == 4
    assert link(app, "with").startswith("tp-4~")


def control(app: AppTest, label: str) -> Any:
    return next(c for c in app.segmented_control if c.label == label)


# --------------------------------------------------------------------------------------------------------- the real run


def test_after_the_answer_a_run_is_offered_and_judges_it(parts: tuple[Service, Queue]):
    app = page(parts[0], lesson="6")
    run = "Run it: 8 processes on this machine"
    assert run not in [b.label for b in app.button]
    commit(app, "stage0")
    assert app.info[0].value == "You said: on stage 0."
    click(app, run)
    assert parts[1].states["run-0"].spec == SPEC
    parts[1].becomes("run-0", phase="running", step=1, losses=(5.0,))
    app.run()
    assert "Cancel" in [b.label for b in app.button]
    folder = saved(parts[0].home, SPEC)
    parts[1].becomes("run-0", phase="done", folder=folder)
    app.run()
    assert not app.exception, app.exception[0].value
    totals = store.load(folder).tables["memory_peak"].groupby("pp")["bytes"].sum() / 4
    assert app.success[0].value.startswith(f"Right: stage 0; its ranks hold {in_bytes(totals[0])} each")
    assert link(app, "run") == folder.name
    assert "Ranks 0–3 are fullest: 42 KiB" in text(app)


def test_a_lesson_says_that_its_run_was_cancelled(parts: tuple[Service, Queue]):
    app = page(parts[0], lesson="6", set="answer-stage0")
    click(app, "Run it: 8 processes on this machine")
    parts[1].cancel("run-0")
    app.run()
    assert "Cancelled." in [info.value for info in app.info]
    assert "Run it: 8 processes on this machine" in [b.label for b in app.button]


def test_a_run_of_another_spec_does_not_judge_the_answer(parts: tuple[Service, Queue]):
    saved(parts[0].home, RunSpec(layout=LayoutSpec(pp=2)))
    app = page(parts[0], lesson="6", set="answer-stage0", run="20261124-101500-run")
    assert not app.success
    assert "Run it: 8 processes on this machine" in [b.label for b in app.button]


# ------------------------------------------------------------------------------------------------------- steps, formulas


def test_the_steps_show_the_engines_own_actions_and_calls():
    done = done_by(SPEC)
    assert done["forward"].actions == (("F", 4), ("send activation", 4))
    assert done["backward"].actions == (("recv gradient", 4), ("B", 4), ("reduce", 1), ("tie", 1))
    assert done["update"].actions == (("step", 1),)
    counted = traffic(SPEC)
    mine = counted[counted["rank"] == 0]
    shown = sum(often for step in done.values() for _, often in step.passes)
    assert shown == mine["calls"].sum() > 0
    assert [what for what, _ in done["forward"].passes] == ["tp all_reduce", "pp send"]


def test_tensor_parallel_groups_are_inside_a_node_first():
    mesh = Mesh({"dp": 2, "tp": 2, "pp": 2})
    assert [inside_nodes(mesh, axis, 4) for axis in ("tp", "dp", "pp")] == [True, True, False]
    assert [inside_nodes(mesh, axis, 2) for axis in ("tp", "dp", "pp")] == [True, False, False]


def test_the_checklist_says_why_a_technique_is_missing(parts: tuple[Service, Queue]):
    """1,024 replicas do not divide 1,536 sequences; 512 do."""
    said = text(page(parts[0], lesson="10", set="model-gpt3-175b~count-1024~batch-1536"))
    left = "data parallelism only, ZeRO 1, ZeRO 1, selective recompute"
    assert f"1,536 sequences do not divide evenly over that many replicas: {left}" in said
    said = text(page(parts[0], lesson="10", set="model-gpt3-175b~count-512~batch-1536"))
    assert "Left out" not in said


def test_the_lessons_own_example_agrees_with_plan_and_has_the_reasons(parts: tuple[Service, Queue]):
    shown = text(page(parts[0], lesson="10"))
    found = search(catalog.model("llama3-70b"), 64, DEVICES["h100-80gb"], 128)
    best = found.layouts.iloc[0]
    assert f"Of {len(found.layouts):,} layouts {found.feasible:,} fit" in shown
    assert f"**{best['layout']} · " in shown
    assert f"{significant(best['step_s'])} s a step" in shown
    advised = advice(tries("llama3-70b", 64, "h100-80gb", 128))
    assert advised
    assert advised.step_s
    assert f"The planner’s layout takes {best['step_s']:.3f} s a step and the checklist’s {advised.step_s:.3f} s" in shown
    assert "over tp instead of 0.000 s" in shown


def test_on_one_device_the_checklist_has_one_way():
    tried = tries("gpt2-1.5b", 1, "h100-80gb", 64)
    assert [entry.lever for entry in tried if entry.fits] == [tried[-1].lever]


@pytest.mark.parametrize("turn", range(2))
def test_the_checklists_questions_do_not_depend_on_overlap(parts: tuple[Service, Queue], turn: int):
    """The right answer is not ZeRO 3, whose time is predicted with full overlap. Choices have the checklist's order."""
    question = LESSONS[9].questions[turn](state(parts, 10))
    names = [choice.name for choice in question.choices]
    assert question.right in names
    assert not str(question.right).startswith("fsdp")
    assert len(names) >= 4
    assert names.index("fsdp_full.tp1.pp1") < names.index(str(question.right))


def test_a_time_of_zero_3_is_said_to_be_predicted_with_full_overlap(parts: tuple[Service, Queue]):
    said = text(page(parts[0], lesson="10", set="model-gpt3-175b~count-512~batch-1536"))
    assert "The time of ZeRO 3 is predicted with full overlap of its gathers." in said
    assert "the time is predicted with full overlap" in said


def test_all_layouts_are_searched_on_request(parts: tuple[Service, Queue]):
    app = page(parts[0], lesson="10", set="model-gpt2-1.5b~count-8~batch-64")
    assert "The planner expects" not in text(app)
    click(app, "Compare with all layouts")
    found = search(catalog.model("gpt2-1.5b"), 8, DEVICES["h100-80gb"], 64)
    assert f"Of {len(found.layouts):,} layouts {found.feasible:,} fit" in text(app)
    assert f"**{found.layouts.iloc[0]['layout']} · " in text(app)
