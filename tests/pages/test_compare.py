"""Compare without a browser: its link, its differences, and its sweep."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

from engine import store
from engine.predict.run import predict
from engine.spec import LayoutSpec, RunSpec
from engine.tables import RunResult
from pages.charts.words import words
from pages.compare import columns, names, sweep
from pages.compare.differences import differences, signed, textbook_step
from pages.compare.page import figures
from pages.shared.beside import items_of, run_items, to_link
from pages.shared.service import Service
from tests.pages.opened import button, link, opened, text
from tests.pages.stand_in import saved, service

SAY = words("en")
PAIR = RunSpec(layout=LayoutSpec(pp=2))
ONE, TWO = "gpt-tiny~dp2.tp2.pp2~1f1b~m4~b2~n20~r0.003~e0", "gpt-tiny~dp2.tp2.pp2~gpipe~m4~b2~n20~r0.003~e0"


@pytest.fixture
def home(tmp_path: Path) -> Path:
    saved(tmp_path, PAIR, "first")
    saved(tmp_path, RunSpec(layout=LayoutSpec(pp=2, schedule="gpipe")), "second")
    return tmp_path


def page(service: Service, **link: str) -> AppTest:
    app = opened("compare", service, **link)
    assert not app.exception
    return app


def linked(app: AppTest, name: str = "with") -> str:
    return link(app, name)


# -------------------------------------------------------------------------------------------------------------- the page


def test_a_new_session_compares_two_layouts_and_says_so_in_the_link(home: Path) -> None:
    app = page(service(home)[0])
    assert linked(app) == f"{ONE}*{TWO}"
    assert "+68% peak memory on the fullest rank" in text(app)  # 4,182,452 bytes on rank 4 against 2,491,672 on rank 0
    assert "same step time, in textbook units" in text(app)
    next(b for b in app.button if b.key == "compare/first/1").click().run()
    assert linked(app) == f"{TWO}*{ONE}"
    next(b for b in app.button if b.key == "compare/remove/1").click().run()
    assert linked(app) == TWO
    assert "Add a second layout or a saved run" in app.info[0].value
    next(b for b in app.button if b.key == "compare/remove/0").click().run()
    assert "Nothing to compare yet" in app.info[0].value


def test_runs_and_layouts_are_shown_side_by_side_and_a_missing_run_has_an_error(home: Path) -> None:
    app = page(service(home)[0], **{"with": f"run:first*{TWO}*run:gone*nonsense"})
    said = text(app)
    assert "gpt-tiny · measured" in said
    assert "gpt-tiny · predicted" in said
    assert app.error[0].value.startswith("The run gone is not here")
    assert "nonsense" in app.error[1].value
    assert "Measured timelines are shown where all columns are measured." in said
    assert "Pipeline, measured" not in said
    assert "Pipeline, measured" in text(page(service(home)[0], **{"with": "run:first*run:second"}))


def test_a_new_run_under_an_old_name_is_shown(home: Path) -> None:
    here = service(home)[0]
    assert "1F1B" in text(page(here, **{"with": "run:first*run:second"}))
    shutil.rmtree(home / "first")
    saved(home, RunSpec(layout=LayoutSpec(dp=2)), "first")
    assert "dp2.tp1.pp1" in text(page(here, **{"with": "run:first*run:second"}))


def test_the_sweep_is_in_the_link_and_a_lever_with_one_value_has_the_reason(home: Path) -> None:
    alone = "gpt-tiny~dp1.tp1.pp1~1f1b~m4~b2~n20~r0.003~e0"
    app = page(service(home)[0], **{"with": alone, "sweep": "layout.sequence_parallel"})
    assert "off is the only value of this setting that is compatible with the others" in "".join(i.value for i in app.info)
    assert any("**on**" in m.value and "tp" in m.value for m in app.markdown)
    app.selectbox(key="compare/sweep").set_value("workload.precision").run()
    assert linked(app, "sweep") == "workload.precision"
    assert "The same for every value: 0.0%" in text(app)


def test_a_written_layout_is_added_or_refused_with_a_sentence(home: Path) -> None:
    app = page(service(home)[0], **{"with": TWO})

    def write(text: str) -> None:
        app.text_input(key="compare/text").set_value(text)
        button(app, "Add this layout").click().run()
        assert not app.exception

    for wrong, why in {
        "pp9": "pp=9",
        "dp2.xx4": "Layout 'dp2.xx4' is not of the form dp2.tp2.pp2",
        "no-model~dp2~1f1b": "The link's model “no-model” is neither",
        TWO: "That layout is already shown.",
    }.items():
        write(wrong)
        assert why in "".join(error.value for error in app.error)
        assert linked(app) == TWO
    write("dp4.tp1.pp2")
    assert not app.error
    assert linked(app) == f"{TWO}*gpt-tiny~dp4.tp1.pp2~1f1b~m4~b2~n20~r0.003~e0"
    write(" gpt2-1.5b~dp1.tp5.pp1~1f1b ")
    assert linked(app).split("*")[-1].startswith("gpt2-1.5b~dp1.tp5.pp1~1f1b~")
    assert app.text_input(key="compare/text").value == ""


def test_the_page_is_in_chinese(home: Path) -> None:
    app = page(service(home)[0], lang="zh")
    assert app.selectbox(key="compare/sweep").options[0] == words("zh")("Pipeline schedule")


# ------------------------------------------------------------------------------------------------------------ the numbers


def scaled(by: float, category: str | None = None, rank: int | None = None) -> RunResult:
    """The result with the peak of one category, or of one rank, multiplied."""
    base = predict(PAIR)
    peak = base.tables["memory_peak"].copy()
    which = (peak["category"] == category) if category else (peak["rank"] == rank) if rank is not None else peak["rank"] >= 0
    peak.loc[which, "bytes"] = (peak.loc[which, "bytes"] * by).astype("int64")
    return replace(base, tables=base.tables | {"memory_peak": peak})


def told(base: RunResult, other: RunResult) -> list[str]:
    return [d.text for d in differences(base, other, SAY)]


def test_a_result_has_no_difference_to_itself() -> None:
    assert told(predict(PAIR), predict(PAIR)) == [
        "same step time, in textbook units",
        "same peak memory on the fullest rank",
        "same bubble",
        "same traffic per rank",
    ]
    assert {d.better for d in differences(predict(PAIR), predict(PAIR), SAY)} == {None}


def test_a_difference_is_relative_to_the_first_and_signed() -> None:
    found = differences(predict(PAIR), scaled(0.5), SAY)[1]
    assert (found.text, found.better) == ("−50% peak memory on the fullest rank", True)
    assert found.share == pytest.approx(-0.5, abs=1e-4)
    bubble = differences(predict(PAIR), predict(RunSpec(layout=LayoutSpec(pp=4))), SAY)[2]  # 3 of 15 units against 9 of 21
    assert (bubble.text, bubble.better) == ("bubble +22.9 percentage points", False)


def test_traffic_that_only_one_has_is_named() -> None:
    alone = predict(RunSpec())
    assert told(alone, predict(PAIR))[3] == "traffic, where the baseline has none"
    assert told(predict(PAIR), alone)[3] == "no traffic"


def test_times_are_measured_where_both_are_measurements(home: Path) -> None:
    first = store.load(home / "first")
    slower = replace(first, summary=first.summary | {"step_ns": 2 * first.summary["step_ns"]})
    assert told(first, slower)[0] == "+100% step time, on this machine"
    less = replace(first, summary=first.summary | {"bubble": first.summary["bubble"] - 0.15})
    assert told(first, less)[2] == "bubble −15.0 percentage points"
    assert told(first, predict(PAIR))[0] == "same step time, in textbook units"


def test_units_of_time_know_how_much_a_stage_has_to_do() -> None:
    """Four microbatches of two sequences through four layers: two stages wait 3 of 15 passes, of 2 layers each, four 9 of 21."""
    two, four = (RunSpec(layout=LayoutSpec(pp=pp)) for pp in (2, 4))
    assert [textbook_step(spec) for spec in (two, four)] == pytest.approx([15 * 2 * 2, 21 * 1 * 2])
    assert told(predict(two), predict(four))[0] == "−30% step time, in textbook units"
    assert textbook_step(RunSpec(layout=LayoutSpec(tp=2))) == pytest.approx(4 * 3 * 4 * 2 / 2)


def test_a_batch_that_differs_is_in_the_head_and_made_equal_by_one_press(home: Path) -> None:
    small = "gpt-tiny~dp1.tp2.pp4~1f1b~m4~b2~n20~r0.003~e0"
    app = page(service(home)[0], **{"with": f"{ONE}*{small}"})
    assert "16 sequences a step" in text(app)
    assert "8 sequences a step" in text(app)
    button(app, "Make it 16").click().run()
    assert not app.exception
    assert linked(app) == f"{ONE}*{small.replace('~m4~', '~m8~')}"
    assert "16 sequences a step" not in text(app)


def test_a_batch_is_made_equal_by_smaller_microbatches_only_if_it_must() -> None:
    here, spec = service(Path("nowhere"))[0], RunSpec(layout=LayoutSpec(dp=2))
    assert "~m3~b1" in (columns.with_batch(spec, 6, here) or "")
    assert "~m5~b2" in (columns.with_batch(spec, 20, here) or "")
    assert columns.with_batch(spec, 5, here) is None


@pytest.mark.parametrize(("share", "said"), [(0.31, "+31%"), (-0.42, "−42%"), (0.056, "+5.6%"), (4.2, "×5.2")])
def test_relative_changes_are_signed_and_large_ones_are_factors(share: float, said: str) -> None:
    assert signed(share) == said


def test_the_table_is_exact() -> None:
    [column] = columns.read([ONE], service(Path("nowhere"))[0])
    assert isinstance(column, columns.Column)
    row = figures(column)
    assert row["peak_bytes"] == column.result.tables["memory_peak"].groupby("rank")["bytes"].sum().max()
    assert row["sequences"] == 2 * 4 * 2
    assert "step_ns" not in row


# -------------------------------------------------------------------------------------------------------------- the sweep


def test_a_sweep_tries_every_value_and_leaves_out_what_does_not_fit_with_its_sentence() -> None:
    base = RunSpec(layout=LayoutSpec(tp=2))
    made = sweep.sweep(base, "layout.tp")
    assert list(made.figures["value"]) == ["1", "2", "4"]
    assert [value for value, _ in made.left_out] == [8, 16]
    assert "tp=8 does not divide 4 heads" in made.left_out[0][1]
    for value, peak in zip((1, 2, 4), made.figures["peak_bytes"], strict=True):
        assert peak == predict(sweep.with_value(base, "layout.tp", value)).summary["peak_bytes"]
    whole = made.memory.groupby("value")["bytes"].sum()
    assert whole["2"] == made.figures.set_index("value")["peak_bytes"]["2"]


def test_a_schedule_sets_its_number_of_chunks() -> None:
    found = sweep.others(RunSpec(layout=LayoutSpec(pp=2)), "layout.schedule")
    assert {name: spec.layout.chunks for name, spec in found.items()}["interleaved"] == 2
    assert "1f1b" not in found
    assert sweep.with_value(found["zb-v"], "layout.schedule", "gpipe").layout.chunks == 1


def test_every_lever_has_a_name_in_both_languages() -> None:
    for language in ("en", "zh"):
        assert set(names.levers(words(language))) == set(sweep.LEVERS)  # type: ignore[arg-type]
        for lever, values in sweep.LEVERS.items():
            assert all(names.value(lever, value, words(language)) for value in values)  # type: ignore[arg-type]


def test_links_have_at_most_four_different_items() -> None:
    assert items_of("a*b*a**c*d*e") == ["a", "b", "c", "d"]
    assert to_link(run_items(["x y", "z"])) == {"with": "run:x y*run:z"}
