"""The list of runs without a browser: reading, searching and sorting, actions, and the report."""

from __future__ import annotations

import json
import os
import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import parse_qs

import pytest
from streamlit.testing.v1 import AppTest

from engine import run_archive, store
from engine.head import SCHEMA_VERSION
from engine.spec import LayoutSpec, RunSpec, WorkloadSpec
from pages.charts.look import View
from pages.charts.units import short
from pages.charts.words import words
from pages.runs import table, upload
from pages.runs.report import report
from pages.runs.rows import NEWEST, RunIndex, RunRow, matching, ordered
from pages.shared.saved import by_run
from pages.shared.service import EXAMPLE, Service
from pages.shared.subprocesses import run_module
from tests.pages.opened import button, click, link, opened, text
from tests.pages.stand_in import PAIR, saved, service

SAY = words("en")


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """Three runs. The first is the oldest, and only it has parity."""
    home = tmp_path / "runs"
    saved(home, PAIR, "a first one")
    saved(home, RunSpec(layout=LayoutSpec(pp=2, schedule="gpipe")), "second")
    saved(home, RunSpec(layout=LayoutSpec(dp=2)), "third")
    for age, name in enumerate(("third", "second", "a first one")):
        os.utime(home / name / "run.json", (10_000 - age, 10_000 - age))
    return home


def names(rows: list[RunRow]) -> list[str]:
    return [row.name for row in rows]


# ------------------------------------------------------------------------------------------------------------- the index


def test_a_row_has_the_numbers_of_the_runs_summary(home: Path) -> None:
    rows, broken = RunIndex(home).read()
    assert (names(rows), broken) == (["third", "second", "a first one"], [])
    row, summary = rows[-1], store.load(home / "a first one").summary
    assert (row.model, row.layout, row.schedule, row.ranks, row.steps) == ("gpt-tiny", "dp1.tp1.pp2", "1f1b", 2, 20)
    assert (row.loss, row.peak_bytes, row.bubble) == (summary["loss_last"], summary["peak_bytes"], summary["bubble"])
    assert (row.wire_bytes, row.parity) == (summary["wire_bytes_per_rank"], summary["parity_max_rel"])
    assert row.speed == summary["tokens_per_second"] > 0


def test_the_levers_of_a_run_are_in_its_row_and_searched(home: Path) -> None:
    layout = LayoutSpec(dp=2, zero=2, recompute="full")
    saved(home, RunSpec(layout=layout, workload=WorkloadSpec(precision="bf16")), "with levers")
    row = next(row for row in RunIndex(home).read()[0] if row.name == "with levers")
    cells = table.cells(row, SAY)
    assert (cells["levers"], cells["speed"]) == ("ZeRO 2, recompute full, bf16", short(row.speed, SAY))
    assert names(matching(RunIndex(home).read()[0], "zero 2", SAY)) == ["with levers"]
    assert ordered(RunIndex(home).read()[0], "-levers")[0].name == "with levers"


def test_a_run_is_opened_once_until_it_changes(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    head = store.head

    def count(folder: Path):
        opened.append(folder.name)
        return head(folder)

    monkeypatch.setattr(store, "head", count)
    index = RunIndex(home)
    index.read()
    index.read()
    assert sorted(opened) == ["a first one", "second", "third"]
    opened.clear()
    store.delete(home / "second")
    os.rename(home / "third", home / "second")  # another run under a known name
    assert names(index.read()[0]) == ["second", "a first one"]
    assert opened == ["second"]


def test_a_folder_that_cannot_be_read_does_not_hide_others(home: Path) -> None:
    (home / "second" / "run.json").write_text("{")
    rows, broken = RunIndex(home).read()
    assert set(names(rows)) == {"a first one", "third"}
    assert [folder.folder.name for folder in broken] == ["second"]
    assert "run.json is not JSON" in broken[0].why


def test_a_run_of_a_newer_program_is_named_with_the_reason(home: Path) -> None:
    path = home / "second" / "run.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"schema_version": SCHEMA_VERSION + 1}))
    app = page(service(home)[0])
    told = next(text.value for text in app.text if text.value.startswith("second: "))
    assert "it was saved by a newer version of this program" in told
    assert not app.exception


@pytest.mark.parametrize(
    ("search", "found"),
    [
        ("", ["third", "second", "a first one"]),
        ("PP2", ["second", "a first one"]),
        ("gpt-tiny gpipe", ["second"]),
        ("first one", ["a first one"]),
        ("dp2 gpipe", []),
    ],
)
def test_every_word_of_a_search_must_occur(home: Path, search: str, found: list[str]) -> None:
    assert names(matching(RunIndex(home).read()[0], search, SAY)) == found


@pytest.mark.parametrize(
    ("sort", "order"),
    [
        (NEWEST, ["third", "second", "a first one"]),
        ("saved", ["a first one", "second", "third"]),
        ("name", ["a first one", "second", "third"]),
        ("-layout", ["third", "second", "a first one"]),
        ("parity", ["a first one", "third", "second"]),  # runs without parity come last in both orders
        ("-parity", ["a first one", "third", "second"]),
    ],
)
def test_runs_are_sorted_by_any_column(home: Path, sort: str, order: list[str]) -> None:
    assert names(ordered(RunIndex(home).read()[0], sort)) == order


# -------------------------------------------------------------------------------------------------------------- the page


def page(service: Service, **link: str) -> AppTest:
    app = opened("runs", service, **link)
    assert not app.exception
    return app


def link_parameters(app: AppTest, label: str) -> dict[str, list[str]] | None:
    """The parameters of a link to another page; None if it is a disabled button."""
    if label in [b.label for b in app.button]:
        assert button(app, label).disabled
        return None
    [found] = [link.proto for link in app.get("page_link") if link.proto.label == label]
    return parse_qs(found.query_string)


def picked(app: AppTest) -> str:
    return link(app, "picked")


def test_without_runs_the_page_says_how_to_make_one(tmp_path: Path) -> None:
    app = page(service(tmp_path)[0])
    assert "No runs yet. Open the Lab, choose a layout and press **Run**" in app.info[0].value
    assert link_parameters(app, "Open the Lab") == {}


def test_a_link_chooses_runs_and_their_actions_are_offered(home: Path) -> None:
    app = page(service(home)[0], picked="second,third,gone", find="gpt", sort="nonsense")
    assert "**2 runs chosen**" in text(app)
    assert link_parameters(app, "Compare") == {"with": ["run:second*run:third"]}
    assert link_parameters(app, "Open in the Lab") is None
    assert picked(app) == "second,third"
    to_lab = link_parameters(page(service(home)[0], picked="second"), "Open in the Lab")
    assert to_lab == {"run": ["second"], "spec": ["gpt-tiny~dp1.tp1.pp2~gpipe~m4~b2~n20~r0.003~e0"]}
    chinese = page(service(home)[0], picked="second", lang="zh")
    assert link_parameters(chinese, words("zh")("Open in the Lab")) == to_lab | {"lang": ["zh"]}


def test_deleted_runs_can_be_restored(home: Path) -> None:
    app = page(service(home)[0], picked="second,third")
    click(app, "Delete")
    assert "Deleted 2 runs." in text(app)
    assert [folder.name for folder in store.listing(home)] == ["a first one"]
    click(app, "Undo")
    assert "2 runs restored." in text(app)
    assert "**2 runs chosen**" in text(app)
    assert len(store.listing(home)) == 3


def test_a_run_that_another_session_deleted_is_reported(home: Path) -> None:
    app = page(service(home)[0], picked="second")
    store.delete(home / "second")
    click(app, "Delete")
    assert app.error[0].value == "The run second is not there any more."
    assert button(app, "Delete").disabled


def test_a_link_with_the_former_name_of_a_run_picks_it(home: Path) -> None:
    store.rename(home / "second", "another")
    app = page(service(home)[0], picked="second,third,none")
    assert "2 runs chosen" in text(app)
    assert link(app, "picked") == "another,third"


def test_a_run_is_renamed_or_the_reason_is_given(home: Path) -> None:
    app = page(service(home)[0], picked="second")
    app.text_input(key="runs/new-name/second").set_value("third")
    click(app, "Rename")
    assert app.error[0].value == "There is another run named third; choose a name that is free."
    app.text_input(key="runs/new-name/second").set_value("best")
    click(app, "Rename")
    assert "Renamed to best." in text(app)
    assert picked(app) == "best"


def test_a_run_does_not_get_the_name_of_the_example(home: Path) -> None:
    app = opened("runs", service(home)[0], picked="second")
    app.text_input(key="runs/new-name/second").set_value(EXAMPLE)
    click(app, "Rename")
    assert "Example is the name of the run that comes with the program; choose another" in text(app)
    assert (home / "second").is_dir()


def test_cached_charts_of_a_run_are_not_shown_for_another_of_its_name(home: Path) -> None:
    told_apart = by_run()[type(home)]
    before = told_apart(home / "third")
    store.delete(home / "third")
    store.rename(home / "a first one", "third")
    assert told_apart(home / "third") != before


def test_a_restore_that_fails_does_not_stop_the_others(home: Path) -> None:
    app = page(service(home)[0], picked="a first one,third")
    click(app, "Delete")
    store.restore(next((home / ".trash").glob("*/a first one")))  # another session restores it
    click(app, "Undo")
    assert app.error[0].value == "The run a first one is not there any more."
    click(app, "Undo")
    assert (home / "third").exists()


def test_an_uploaded_zip_becomes_a_run_or_the_reason_is_given(home: Path) -> None:
    app = page(service(home)[0])
    app.file_uploader[0].upload("mine.zip", b"PK", "application/zip").run()
    assert app.error[0].value.startswith("This is not a zip of a saved run: it cannot be opened")
    assert len(store.listing(home)) == 3


def test_a_zip_that_crashes_its_process_is_reported(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def ended(*_: object, **__: object) -> bytes:
        raise RuntimeError(
            "engine.run_archive failed: terminate called after throwing an instance of 'parquet::ParquetException'"
        )

    monkeypatch.setattr(upload, "run_module", ended)
    app = page(service(home)[0])
    app.file_uploader[0].upload("mine.zip", b"PK", "application/zip").run()
    assert app.error[0].value == "This zip is damaged: the process that opened it ended before it was done."
    assert not app.exception


def test_a_downloaded_run_can_be_uploaded_beside_the_original(home: Path) -> None:
    app = page(service(home)[0])
    app.file_uploader[0].upload("NUL.zip", run_archive.pack(home / "second"), "application/zip").run()
    assert "Added second-2." in app.success[0].value
    assert store.load(home / "second-2").summary == store.load(home / "second").summary


def test_thousands_of_runs_are_shown_in_parts(home: Path) -> None:
    run = (home / "third" / "run.json").read_bytes()
    for n in range(120):
        (home / f"copy {n:03}").mkdir()
        (home / f"copy {n:03}" / "run.json").write_bytes(run)
    app = page(service(home)[0], sort="name")
    assert "1 to 50 of 123" in text(app)
    click(app, "Next")
    click(app, "Next")
    assert "101 to 123 of 123" in text(app)
    assert button(app, "Next").disabled


# ------------------------------------------------------------------------------------------------------------ the report


class Reader(HTMLParser):
    """The elements and addresses of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href", "action")]


def test_a_report_has_every_chart_with_its_table_and_loads_nothing(home: Path) -> None:
    made = report("a <b>run", store.load(home / "a first one"), View("light", "en"))
    reader = Reader()
    reader.feed(made)
    assert reader.tags.count("svg") == reader.tags.count("figcaption") == reader.tags.count("details") == 7
    assert reader.tags.count("table") == 8  # of every chart, and of the spec
    assert "script" not in reader.tags
    assert [address for address in reader.addresses if not address.startswith("#")] == []
    assert "url(http" not in made
    for said in (
        "Rank 0 is fullest: 42 KiB; the prediction is ",
        "the vertical tick is the prediction",
        "The bubble takes 20.0% of 15 ms",
        "Traffic matrix",
        "The loss fell from 5.500 to 4.250",
    ):
        assert said in made
    assert "zooms" not in made
    assert "a &lt;b&gt;run" in made
    assert "<b>run" not in made
    assert "3.1e-7" in made
    assert re.search(r"workload\.steps</th><td>20<", made)


def test_a_report_has_the_text_that_was_generated(home: Path) -> None:
    run = store.load(home / "third")
    run.summary["generated"] = {"prompt": "a <b> ", "tokens": [10, 98], "text": "\nb"}
    made = report("third", run, View("light", "en"))
    assert 'class="ss-prompt">a<i> </i>&lt;b&gt;<i> </i></span>' in made
    assert 'class="ss-new"><i data-mark="↵"></i>\nb</span>' in made


def test_a_report_has_theme_and_language_and_another_process_makes_it(home: Path) -> None:
    dark = run_module("pages.runs.report", str(home / "third"), "dark", "zh").decode()
    assert '<html lang="zh-Hans">' in dark
    assert "background: #0F141A" in dark
    assert "#56B4E9" in dark
    (home / "third" / "spans.parquet").unlink()
    with pytest.raises(RuntimeError, match=r"(?s)pages.runs.report failed: .*spans"):
        run_module("pages.runs.report", str(home / "third"), "dark", "zh")
