"""The Lab page without a browser, with a queue that the test controls."""

from __future__ import annotations

from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

from engine import store
from engine.launch.predicted import predicted
from pages.shared.service import Service
from tests.pages.opened import click, link, opened, text
from tests.pages.stand_in import PAIR, Queue, dry_run_of, saved, service


@pytest.fixture
def parts(tmp_path: Path) -> tuple[Service, Queue]:
    return service(tmp_path / "runs")


def page(service: Service, **link: str) -> AppTest:
    return opened("lab", service, **link)


def number(app: AppTest, label: str) -> float | None:
    return next(n.value for n in app.number_input if n.label == label)


def test_a_new_session_shows_the_default_and_writes_it_into_the_link(parts: tuple[Service, Queue]):
    app = page(parts[0])
    assert not app.exception
    assert link(app, "spec") == "gpt-tiny~dp2.tp2.pp2~1f1b~m4~b2~n20~r0.003~e0"
    assert "8 ranks: 2 stages × 2 replicas × 2 slices" in text(app)
    assert "The bubble takes 20.0% of 15 units of time" in text(app)
    assert not next(b for b in app.button if b.label == "Run on 8 processes").disabled


def test_a_link_restores_the_choice(parts: tuple[Service, Queue]):
    code = "gpt.l6.h96.a6.v300.s48.f0~dp1.tp3.pp2~gpipe~m8~b1~n5~r0.01~e7~k4.2~p"
    app = page(parts[0], spec=code)
    assert (number(app, "Layers"), number(app, "Tensor (tp)"), number(app, "Microbatches")) == (6, 3, 8)
    assert any(e.label == "Advanced: split, learning rate, seed" for e in app.expander)
    assert app.toggle[0].value
    assert link(app, "spec") == code


def test_a_bad_link_is_reported_and_the_default_is_shown(parts: tuple[Service, Queue]):
    app = page(parts[0], spec="gpt-tiny~dp2~2f2b")
    assert "2f2b" in app.warning[0].value
    assert link(app, "spec").startswith("gpt-tiny~dp2.tp2.pp2~1f1b")


@pytest.mark.parametrize("language", ["en", "zh"])
def test_the_message_shows_the_text_of_a_bad_link_unchanged(parts: tuple[Service, Queue], language: str):
    """A backslash turns off the meaning of the next character in Markdown. Without backslashes, it is the link's text."""
    told = page(parts[0], spec="garbage", lang=language).warning[0].value
    assert "gpt-tiny\\~dp2.tp2.pp2\\~1f1b" in told
    link = page(parts[0], spec="![x](http://a)`_*$~\\", lang=language).warning[0].value
    assert r"“!\[x](http\://a)\`\_\*\$\~\\”" in link


def test_the_link_follows_the_form(parts: tuple[Service, Queue]):
    app = page(parts[0])
    next(n for n in app.number_input if n.label == "Microbatches").set_value(6).run()
    assert "~m6~" in link(app, "spec")


def test_an_invalid_choice_is_reported_and_a_button_corrects_it(parts: tuple[Service, Queue]):
    app = page(parts[0], spec="gpt-tiny~dp1.tp3.pp1~1f1b")
    assert app.warning[0].value == "tp=3 does not divide 4 heads; 1, 2 and 4 do."
    assert next(b for b in app.button if b.label == "Run").disabled
    assert "Cannot run yet: tp=3 does not divide 4 heads" in text(app)
    click(app, "tp=4")
    assert not app.warning
    assert number(app, "Tensor (tp)") == 4
    assert "dp1.tp4.pp1" in link(app, "spec")
    assert not next(b for b in app.button if b.label == "Run on 4 processes").disabled


@pytest.mark.parametrize(("language", "said"), [("en", "Cannot run yet: "), ("zh", "还不能运行：")])
def test_no_microbatches_are_a_misfit_like_any_other(parts: tuple[Service, Queue], language: str, said: str):
    app = page(parts[0], spec="gpt-tiny~dp1.tp2.pp2~1f1b", lang=language)
    label = {"en": "Microbatches", "zh": "微批次"}[language]
    next(n for n in app.number_input if n.label == label).set_value(0).run()
    assert not app.exception
    assert "microbatches=0" in app.warning[0].value
    assert said in text(app)
    assert "~m0~" in link(app, "spec")
    click(app, "microbatches=1")
    assert not app.warning
    assert number(app, label) == 1


def test_while_the_form_is_invalid_the_last_valid_choice_is_shown(parts: tuple[Service, Queue]):
    app = page(parts[0], spec="gpt-tiny~dp1.tp2.pp2~1f1b")
    next(n for n in app.number_input if n.label == "Tensor (tp)").set_value(3).run()
    assert [said.value for said in app.info][:1] == [
        "Some settings are not compatible; the form at the left says which. This still shows gpt-tiny on dp1.tp2.pp2."
    ]
    assert "4 ranks: 2 stages × 2 slices" in text(app)
    click(app, "tp=4")
    assert "8 ranks: 2 stages × 4 slices" in text(app)
    assert "still gpt-tiny" not in text(app)


def test_levers_are_restored_and_named(parts: tuple[Service, Queue]):
    code = "llama-tiny~dp2.tp2.pp2~zb-v~m4~b2~n5~r0.003~e0~c2~z2~q~afull~R2~fbf16"
    app = page(parts[0], spec=code)
    assert not app.exception
    assert link(app, "spec") == code
    label = "Memory optimizations: ZeRO 2, recompute full, first 2 layers of a chunk, bf16, sequence parallel"
    assert any(e.label == label for e in app.expander)
    assert "ZeRO 2 over 2 replicas" in text(app)


def test_a_prompt_is_restored_and_its_restrictions_are_reported(parts: tuple[Service, Queue]):
    app = page(parts[0], spec="gpt-tiny~dp1.tp2.pp1~1f1b~q~yVGhlIA")
    assert any(e.label == "Advanced: prompt" for e in app.expander)
    assert "one token cannot be sharded along the sequence" in app.warning[0].value
    click(app, "sequence parallel off")
    assert not app.warning


def pick(app: AppTest, label: str):
    return next(s for s in app.selectbox if s.label == label)


def select(app: AppTest, label: str, value: str) -> None:
    pick(app, label).select(value).run()
    assert not app.exception


def test_a_schedule_sets_its_chunks_and_a_family_its_sizes(parts: tuple[Service, Queue]):
    app = page(parts[0])
    select(app, "Pipeline schedule", "interleaved")
    assert number(app, "Chunks") == 2
    select(app, "Pipeline schedule", "gpipe")
    assert number(app, "Chunks") == 1
    select(app, "Size", "medium")
    select(app, "Family", "transformer")
    assert link(app, "spec").startswith("transformer-tiny~dp2.tp2.pp2~gpipe")
    select(app, "Size", "custom")
    assert number(app, "Layers") == 4


def test_a_published_model_has_its_name_and_can_be_changed_into_a_custom_one(parts: tuple[Service, Queue]):
    app = page(parts[0], spec="llama3-8b~dp2.tp2.pp2~1f1b")
    assert pick(app, "Size").value == "llama3-8b"
    assert all(n.label != "Vocabulary" for n in app.number_input), "the name says it"
    select(app, "Size", "custom")
    assert number(app, "Vocabulary") == 128256
    select(app, "Size", "llama3-8b")
    assert link(app, "spec").startswith("llama3-8b~")
    select(app, "Family", "gpt")
    assert link(app, "spec").startswith("gpt-tiny~")
    assert "llama3-8b" not in pick(app, "Size").options


def test_run_writes_the_run_into_the_link_and_shows_its_progress(parts: tuple[Service, Queue]):
    app = page(parts[0])
    click(app, "Run on 8 processes")
    assert link(app, "run") == "run-0"
    parts[1].becomes("run-0", phase="running", step=3, losses=(5.0, 4.5, 4.0))
    app.run()
    assert any("Step **3** of 20, loss **4.000**" in p.proto.text for p in app.get("progress"))
    click(app, "Cancel")
    app.run()
    assert app.info[0].value == "Cancelled. It had finished 3 of 20 steps; nothing was saved."


def test_another_session_watches_the_run_in_its_link(parts: tuple[Service, Queue]):
    app = page(parts[0], spec="gpt-tiny~dp1.tp2.pp2~1f1b")
    click(app, "Run on 4 processes")
    other = page(parts[0], run="run-0")
    assert (number(other, "Data (dp)"), number(other, "Tensor (tp)")) == (1, 2)
    assert [b.label for b in other.button].count("Cancel") == 1


def test_a_refused_run_has_its_reason(parts: tuple[Service, Queue]):
    parts[1].refuse = "no memory today"
    app = page(parts[0])
    click(app, "Run on 8 processes")
    assert app.error[0].value == "This run was refused: no memory today."


def test_a_failed_run_names_the_rank_and_shows_its_traceback(parts: tuple[Service, Queue]):
    app = page(parts[0])
    click(app, "Run on 8 processes")
    parts[1].becomes("run-0", phase="failed", failed_rank=3, message="rank 3 raised", traceback="RuntimeError: a drill")
    app.run()
    assert app.error[0].value == "Rank 3 raised."
    assert app.code[0].value == "RuntimeError: a drill"


def test_a_finished_run_becomes_its_folder_in_the_link_and_its_charts(parts: tuple[Service, Queue]):
    app = page(parts[0])
    click(app, "Run on 8 processes")
    parts[1].becomes("run-0", phase="done", folder=saved(parts[0].home, PAIR))
    app.run()
    assert not app.exception
    assert link(app, "run") == "20261124-101500-run"
    assert "Measured: gpt-tiny on dp1.tp1.pp2, 1F1B" in text(app)


def test_a_saved_run_is_found_by_a_new_server(parts: tuple[Service, Queue]):
    saved(parts[0].home, PAIR)
    app = page(parts[0], run="20261124-101500-run")
    assert not app.exception
    assert number(app, "Pipeline (pp)") == 2
    shown = text(app)
    assert "Rank 0 is fullest: 42 KiB; the prediction is " in shown
    assert "Gradients equal to the unsharded model: largest difference 3.1e-7 of the largest entry, ≤ 1e-5" in shown
    assert "The bubble takes 20.0% of 15 ms" in shown
    assert "The loss fell from 5.500 to 4.250" in shown


def test_the_old_link_of_a_renamed_run_opens_it(parts: tuple[Service, Queue]):
    store.rename(saved(parts[0].home, PAIR), "mine")
    app = page(parts[0], run="20261124-101500-run")
    assert not app.exception
    assert link(app, "run") == "mine"
    assert "Measured: gpt-tiny on dp1.tp1.pp2" in text(app)


def test_a_saved_dry_run_is_not_shown_and_the_page_says_so(parts: tuple[Service, Queue]):
    store.save(dry_run_of(PAIR, 1), parts[0].home / "rank 1")
    app = page(parts[0], run="rank 1")
    assert not app.exception
    assert app.error[0].value == "This run cannot be shown: rank 1 is a dry run: Compare shows it beside others."


def test_of_a_saved_prediction_the_page_says_where_it_is_shown(parts: tuple[Service, Queue]):
    store.save(predicted(PAIR), parts[0].home / "by formula")
    app = page(parts[0], run="by formula")
    assert app.error[0].value == "This run cannot be shown: by formula is a prediction: Compare shows it beside others."


def test_an_incomplete_run_is_reported(parts: tuple[Service, Queue]):
    (saved(parts[0].home, PAIR) / "spans.parquet").unlink()
    app = page(parts[0], run="20261124-101500-run")
    assert not app.exception
    assert app.error[0].value.startswith("This run cannot be shown: ")
    assert app.error[0].value.endswith("20261124-101500-run is not a saved run: spans.parquet is not in it.")


@pytest.mark.parametrize("run", ["../elsewhere", "..", "/etc", ".texts", "no-such-run"])
def test_no_link_leads_out_of_the_folder_of_runs(parts: tuple[Service, Queue], run: str):
    saved(parts[0].home.parent / "elsewhere", PAIR, "run")
    app = page(parts[0], run=run)
    assert app.warning[0].value.startswith("The run in this link was not found: ")
    assert "Measured" not in text(app)


def test_the_last_result_stays_while_another_run_is_active(parts: tuple[Service, Queue]):
    saved(parts[0].home, PAIR)
    app = page(parts[0], run="20261124-101500-run")
    click(app, "Run on 2 processes")
    assert link(app, "run") == "run-0"
    assert "Measured: gpt-tiny on dp1.tp1.pp2" in text(app)
    assert "Waiting for the first step" in text(app)
    assert "The charts of this run appear here when it has ended." in text(app)


def test_another_run_is_queued_while_one_is_on(parts: tuple[Service, Queue]):
    app = page(parts[0])
    click(app, "Run on 8 processes")
    parts[1].becomes("run-0", phase="running", step=3, losses=(5.0, 4.5, 4.0))
    app.run()
    assert "Step 3 of 20: the loss is 4.000" in text(app)
    next(n for n in app.number_input if n.label == "Data (dp)").set_value(1).run()
    click(app, "Queue a run on 4 processes")
    assert link(app, "run") == "run-0", "what is on stays in sight"
    assert "gpt-tiny · dp1.tp2.pp2 · 1F1B" in text(app)
    click(app, "Show")
    assert link(app, "run") == "run-1"
    assert "gpt-tiny · dp2.tp2.pp2 · 1F1B" in text(app), "what was shown still goes on, and is listed"
    click(app, "Show")
    parts[1].becomes("run-0", phase="done", folder=saved(parts[0].home, PAIR))
    parts[1].becomes("run-1", phase="done", folder=saved(parts[0].home, PAIR, "second"))
    app.run()
    assert link(app, "run") == "20261124-101500-run"
    click(app, "Show")
    assert link(app, "run") == "second"
    assert "gpt-tiny · dp2.tp2.pp2 · 1F1B" not in text(app)
    assert "gpt-tiny · dp1.tp2.pp2 · 1F1B" not in text(app)


@pytest.mark.parametrize(("rank", "chosen"), [("1", 1), ("2", 0), ("-1", 0), ("x", 0), ("9" * 40, 0)])
def test_a_rank_in_the_link_is_marked_if_it_exists(parts: tuple[Service, Queue], rank: str, chosen: int):
    app = page(parts[0], spec="gpt-tiny~dp1.tp2.pp1~1f1b", rank=rank)
    assert not app.exception
    assert text(app).count('data-role="self"') == chosen


def test_a_page_in_chinese(parts: tuple[Service, Queue]):
    saved(parts[0].home, PAIR)
    app = page(parts[0], run="20261124-101500-run", lang="zh")
    assert not app.exception
    shown = text(app)
    assert "实测：gpt-tiny，dp1.tp1.pp2，1F1B" in shown
    assert "rank 0 发送最多：一步 7 KiB，而 rank 1 为 4 KiB" in shown
    assert "气泡占 15 ms 的 20.0%" in shown
    assert "2 个 rank 有 0 个 GPU，所以用 CPU 上的 gloo" in shown
    assert link(app, "spec") == link(page(parts[0], run="20261124-101500-run"), "spec")


def test_a_control_selects_payload_or_wire_bytes(parts: tuple[Service, Queue]):
    saved(parts[0].home, PAIR)
    app = page(parts[0], run="20261124-101500-run")
    assert "Wire bytes are what a rank would send" in text(app)
    assert "Rank 0 sends most: 7 KiB in a step" in text(app)
    next(c for c in app.segmented_control if c.label == "Bytes").set_value("payload").run()
    assert "Payload bytes are the size of the tensors that a rank communicates" in text(app)
    assert "Every rank has the same payload: 7 KiB in a step" in text(app)
    assert link(app, "bytes") == "payload"


def test_a_link_restores_the_slow_stages_and_which_timeline_is_drawn(parts: tuple[Service, Queue]):
    saved(parts[0].home, PAIR)
    # Steps of different lengths, so that the preview's textbook differs from the run's.
    code = "gpt-tiny~dp1.tp1.pp2~1f1b~m8~b2~n20~r0.003~e0"
    asked = {"slow": "0x3", "slow-run": "1x2.5", "timeline": "textbook"}
    app = page(parts[0], spec=code, run="20261124-101500-run", **asked)
    assert not app.exception
    assert "With stage 0 slowed 3×" in text(app)
    assert "With stage 1 slowed 2.5×" in text(app)
    assert {name: link(app, name) for name in asked} == asked


def test_the_link_follows_a_slow_stage_and_the_timeline(parts: tuple[Service, Queue]):
    saved(parts[0].home, PAIR)
    app = page(parts[0], run="20261124-101500-run")
    next(c for c in app.segmented_control if c.label == "Timeline").set_value("projected").run()
    assert link(app, "timeline") == "projected"
    run_slow = [s for s in app.selectbox if s.label == "Slow one stage"][-1]
    run_slow.select(1).run()
    assert (link(app, "slow-run"), link(app, "slow")) == ("1x2", "")
    assert text(app).count("With stage 1 slowed 2×") == 1
    next(s for s in app.select_slider if s.label == "Slowdown factor").set_value(1.25).run()
    assert link(app, "slow-run") == "1x1.25"
    [s for s in app.selectbox if s.label == "Slow one stage"][-1].select(None).run()
    next(c for c in app.segmented_control if c.label == "Timeline").set_value("measured").run()
    assert not app.exception
    assert (link(app, "slow-run"), link(app, "timeline")) == ("", "")


@pytest.mark.parametrize("slow", ["2x2", "0x7", "-1x2", "0", "x", "0x2x2", "９x2"])
def test_a_slow_stage_that_is_not_offered_is_ignored(parts: tuple[Service, Queue], slow: str):
    app = page(parts[0], spec="gpt-tiny~dp1.tp1.pp2~1f1b", slow=slow, timeline="none")
    assert not app.exception
    assert "slowed" not in text(app)


def test_the_curve_is_that_of_the_chosen_rank_and_its_control_chooses_the_rank(parts: tuple[Service, Queue]):
    saved(parts[0].home, PAIR)
    app = page(parts[0], run="20261124-101500-run")
    assert "Rank 0 peaks at" in text(app)  # the fullest
    assert pick(app, "Rank").value == 0
    app.query_params["rank"] = "1"
    app.run()
    assert "Rank 1 peaks at" in text(app)
    pick(app, "Rank").select(0).run()
    assert link(app, "rank") == "0"
    assert text(app).count('data-rank="0" data-role="self"') == 1
    assert "Rank 0 peaks at" in text(app)


@pytest.mark.parametrize(
    ("seconds", "told"),
    [(None, "Waiting: 2 runs ahead in the queue"), (4.0, "a few seconds"), (44.0, "about 40 s"), (200.0, "about 3 minutes")],
)
def test_who_waits_sees_the_place_and_how_long_it_takes(parts: tuple[Service, Queue], seconds: float | None, told: str):
    service, queue = parts
    run = service.submit(PAIR)
    queue.becomes(run, ahead=2)
    if seconds is not None:
        queue.waits[run] = seconds
    (bar,) = page(service, run=run).get("progress")
    assert bar.proto.text.startswith("Waiting: 2 runs ahead in the queue")
    assert told in bar.proto.text


def test_a_run_of_a_server_before_this_one_is_told_what_became_of_it(parts: tuple[Service, Queue]):
    service, queue = parts
    run = service.submit(PAIR)
    queue.becomes(run, phase="cancelled", message="the server was restarted before this run began; run it again")
    app = page(service, run=run)
    assert "The server was restarted before this run began; run it again." in app.info[0].value
    assert not next(b for b in app.button if b.label.startswith("Run on")).disabled
