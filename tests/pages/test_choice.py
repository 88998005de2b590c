from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from engine.catalog import MODELS
from engine.launch import limits
from engine.spec import LayoutSpec, RunSpec, WorkloadSpec
from pages.shared.choice import DEFAULTS, Choice, Problem, description, read
from pages.shared.texts import Texts


@pytest.fixture
def texts(tmp_path: Path) -> Texts:
    return Texts(tmp_path / "texts")


def problems(texts: Texts, **changes: Any) -> list[Problem]:
    verdict = read(Choice.default().with_changes({k.replace("__", "."): v for k, v in changes.items()}), texts)
    return [*verdict.problems, *verdict.refused]


def test_a_valid_choice_gives_the_spec(texts: Texts):
    verdict = read(Choice.default(), texts)
    assert verdict.runnable == verdict.spec == RunSpec(layout=LayoutSpec(dp=2, tp=2, pp=2))


@pytest.mark.parametrize(
    ("changes", "sentence", "fixes"),
    [
        ({"layout__tp": 3}, "tp=3 does not divide 4 heads; 1, 2 and 4 do", ["tp=2", "tp=4", "tp=1"]),
        ({"model__heads": 5}, "heads=5 does not divide hidden=64", ["heads=4", "heads=2", "heads=8", "heads=1"]),
        ({"layout__pp": 5, "layout__dp": 1}, "pp=5 needs at least 5 layers", ["pp=4", "pp=3", "pp=2", "pp=1"]),
        (
            {"layout__dp": 4, "layout__tp": 4},
            "4 × 4 × 2 = 32 ranks; one machine runs at most 16",
            ["dp=2", "tp=2", "pp=1", "dp=1"],
        ),
        ({"layout__split": "1,2"}, "adds up to 3 layers and the model has 4", ["split as evenly as possible"]),
        ({"layout__split": "a"}, "split 'a' is not a list of whole numbers", ["split as evenly as possible"]),
        ({"model__vocab": 100}, "vocab=100 is too small", ["vocab=256"]),
        ({"workload__text": "0" * 16}, "is not on this machine", ["use the built-in text"]),
        ({"layout__zero": 1, "layout__dp": 1}, "zero=1 shards over dp replicas, and dp=1 has only one", ["zero=0"]),
        ({"layout__sequence_parallel": True, "layout__tp": 1}, "needs tp of at least 2, not tp=1", ["sequence parallel off"]),
        ({"layout__schedule": "zb-v"}, "two chunks, not chunks=1", ["chunks=2"]),
        ({"model__hidden": 16384, "model__layers": 96, "model__ffn": 0}, "this run needs about", []),
    ],
)
def test_a_problem_has_a_sentence_and_fixes(texts: Texts, changes: dict[str, Any], sentence: str, fixes: list[str]):
    [problem] = problems(texts, **changes)
    assert sentence in problem.sentence
    assert [str(fix) for fix in problem.fixes] == fixes


@pytest.mark.parametrize("changes", [{"layout__tp": 3}, {"layout__tp": 3, "layout__pp": 6}, {"layout__dp": 16, "layout__tp": 4}])
def test_every_fix_solves_its_problem_and_causes_no_other(texts: Texts, changes: dict[str, Any]):
    before = problems(texts, **changes)
    for problem in before:
        assert problem.fixes
        for fix in problem.fixes:
            after = problems(texts, **changes | {fix.field.replace(".", "__"): fix.value})
            assert problem.field not in {p.field for p in after}
            assert {p.field for p in after} <= {p.field for p in before}


@pytest.mark.parametrize("changes", [{"layout__dp": 16}, {"model__hidden": 16384, "model__layers": 96}])
def test_a_choice_that_this_machine_cannot_run_still_gives_a_spec(texts: Texts, changes: dict[str, Any]):
    verdict = read(Choice.default().with_changes({k.replace("__", "."): v for k, v in changes.items()}), texts)
    assert verdict.spec is not None
    assert verdict.refused
    assert verdict.runnable is None


def test_memory_of_active_runs_counts_as_free_since_they_end_before(texts: Texts, monkeypatch: pytest.MonkeyPatch):
    spec = read(Choice.default(), texts).spec
    assert spec is not None
    monkeypatch.setattr(limits, "memory_for_runs", lambda: limits.need(spec).total - 1)
    assert read(Choice.default(), texts).runnable is None
    assert read(Choice.default(), texts, [spec]).runnable == spec


def test_a_saved_run_fills_the_form(texts: Texts):
    name = texts.keep(b"to be or not to be, " * 20)
    spec = RunSpec(
        model=MODELS["gpt-small"],
        layout=LayoutSpec(pp=2, schedule="gpipe", split=(5, 3)),
        workload=WorkloadSpec(text=str(texts.path(name)), steps=7),
        parity=True,
    )
    choice = Choice.of(spec, texts)
    assert read(choice, texts).spec == spec
    assert (choice.model_name, choice["layout.split"], choice["workload.text"]) == ("gpt-small", "5,3", name)


def test_every_field_of_the_spec_is_in_the_choice():
    spec = RunSpec()
    for part in ("model", "layout", "workload", "generate"):
        assert set(Choice.default().part(part)) == set(getattr(spec, part).model_dump())


def test_every_field_is_described():
    assert all(description(field) for field in DEFAULTS)
