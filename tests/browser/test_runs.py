"""The Runs page in a real browser, from an empty list to a run that is downloaded and uploaded."""

from __future__ import annotations

import json
import os
import re
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from playwright.sync_api import BrowserContext, Download, Locator, Page, expect

from engine import run_archive, store
from engine.spec import LayoutSpec, RunSpec, WorkloadSpec
from tests.browser.served import LONG_MS, Server, Watched, drawn, served
from tests.pages.stand_in import PAIR, result_of
from tests.pages.stand_in import saved as stand_in


def save(home: Path, name: str, spec: RunSpec, age: int) -> None:
    """A made-up run, saved `age` minutes ago."""
    folder = stand_in(home, spec, name)
    now = (folder / "run.json").stat().st_mtime
    os.utime(folder / "run.json", (now - 60 * age, now - 60 * age))


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory, context: BrowserContext) -> Iterator[Server]:
    """A server with runs of this module only."""
    with served(tmp_path_factory.mktemp("own")) as server:
        lab = Watched(context)
        lab.open(server)
        lab.close()
        yield server


@pytest.fixture
def page(own: Server, watched: Watched) -> Page:
    watched.page.goto(f"{own.url}/runs")
    drawn(watched.page)
    return watched.page


def names(page: Page) -> Locator:
    return page.locator("tbody th a")


def tick(page: Page, *chosen: str) -> None:
    for name in chosen:
        page.get_by_role("checkbox", name=f"Select {name}").check()
    many = f"{len(chosen)} run{'s' if len(chosen) > 1 else ''} chosen"
    expect(page.get_by_text(many)).to_be_visible()


def download(page: Page, label: str) -> Path:
    with page.expect_download(timeout=LONG_MS) as waiting:  # a report takes seconds
        page.get_by_role("button", name=label).click()
    got: Download = waiting.value
    path = Path(got.path())
    return path.rename(path.with_name(got.suggested_filename))


def test_the_list_begins_empty_and_then_shows_searches_and_sorts(own: Server, page: Page) -> None:
    expect(page.get_by_text("No runs yet. Open the Lab, choose a layout and press Run")).to_be_visible()

    save(own.home, "first", PAIR, 3)
    save(own.home, "second", RunSpec(layout=LayoutSpec(pp=2, schedule="gpipe")), 2)
    save(own.home, "third", RunSpec(layout=LayoutSpec(dp=2)), 1)
    page.reload()
    expect(names(page)).to_have_text(["third", "second", "first"])
    cells = page.get_by_role("row", name=re.compile("first")).get_by_role("cell").all_inner_texts()
    assert cells[2:5] == ["gpt-tiny", "dp1.tp1.pp2", "1F1B"]
    levers, ranks, steps, loss, speed, *rest = cells[5:]
    assert (levers, ranks, steps, loss) == ("–", "2", "20", "4.250")
    assert re.fullmatch(r"[\d.]+ k", speed)
    assert rest == ["42 KiB", "20.0%", "5.50 KiB", "3.1e-7"]

    page.get_by_role("button", name="Name", exact=True).click()
    expect(names(page)).to_have_text(["first", "second", "third"])
    page.get_by_role("textbox", name="Search").fill("gpipe pp2")
    page.get_by_role("textbox", name="Search").press("Enter")
    expect(names(page)).to_have_text(["second"])
    expect(page).to_have_url(re.compile("find=gpipe"))
    assert "sort=name" in page.url
    page.reload()
    expect(names(page)).to_have_text(["second"])
    page.get_by_role("textbox", name="Search").fill("nothing such")
    page.get_by_role("textbox", name="Search").press("Enter")
    page.get_by_role("button", name="Show all").click()
    expect(names(page)).to_have_text(["first", "second", "third"])


def test_a_run_is_renamed_and_a_bad_name_is_reported(page: Page) -> None:
    tick(page, "first")
    page.get_by_role("button", name="Rename").click()
    name = page.get_by_role("textbox", name="New name")
    name.fill("../first")
    name.press("Enter")
    expect(page.get_by_text("A run cannot be named '../first'")).to_be_visible()
    name.fill("the best")
    name.press("Enter")
    expect(page.get_by_text("Renamed to the best.")).to_be_visible()
    expect(names(page)).to_have_text(["third", "second", "the best"])


def test_what_was_downloaded_and_deleted_can_be_uploaded_again(own: Server, page: Page) -> None:
    tick(page, "the best")
    page.get_by_role("button", name="Download").click()
    taken = download(page, "The run as a zip file")
    assert taken.name == "the best.zip"
    trace = json.loads(download(page, "Its timeline, for ui.perfetto.dev").read_text())
    assert {event["ph"] for event in trace["traceEvents"]} == {"M", "X", "C"}
    assert "steps.csv" in zipfile.ZipFile(download(page, "Its tables, as CSV")).namelist()
    assert "--pipeline-model-parallel-size 2" in download(page, "Megatron-LM").read_text()
    assert download(page, "A report with its charts (HTML)").read_text().count("<svg") == 7
    page.keyboard.press("Escape")

    page.get_by_role("button", name="Delete").click()
    expect(page.get_by_text("Deleted the best.")).to_be_visible()
    page.get_by_role("button", name="Dismiss").click()
    page.get_by_role("button", name="Upload a run").click()
    page.locator("input[type=file]").set_input_files(taken)
    expect(page.get_by_text("Added the best.")).to_be_visible()
    expect(page.locator("input[type=file]")).to_have_count(0)  # the popover is closed
    expect(names(page)).to_have_text(["the best", "third", "second"])
    assert store.load(own.home / "the best").summary["parity_max_rel"] == 3.1e-7


def upload(page: Page, name: str, content: bytes) -> None:
    page.get_by_role("button", name="Upload a run").click()
    page.locator("input[type=file]").set_input_files({"name": name, "mimeType": "application/zip", "buffer": content})


def test_a_run_with_very_many_microbatches_can_be_uploaded(own: Server, page: Page, tmp_path: Path) -> None:
    """Its zip has more than a megabyte, because times do not compress: as that of eight ranks with 400 microbatches."""
    spec = RunSpec(layout=LayoutSpec(dp=2, tp=2, pp=2), workload=WorkloadSpec(microbatches=2500))
    result = result_of(spec)
    spans = result.tables["spans"]
    noise = np.random.default_rng(0).integers(10**9, size=(2, len(spans)))
    noisy = spans.assign(cpu_ns=noise[0], end_ns=spans["end_ns"].where(spans["lane"] == "compute", spans["end_ns"] + noise[1]))
    store.save(replace(result, tables=result.tables | {"spans": noisy}), tmp_path / "very many")
    zipped = run_archive.pack(tmp_path / "very many")
    assert len(zipped) > 1 << 20
    upload(page, "x.zip", zipped)
    expect(page.get_by_text("Added very many.")).to_be_visible(timeout=LONG_MS)
    assert len(store.load(own.home / "very many").tables["spans"]) == len(spans)
    store.delete(own.home / "very many")


def test_the_servers_upload_limit_is_at_least_the_fields(page: Page) -> None:
    page.get_by_role("button", name="Upload a run").click()
    said = page.get_by_test_id("stFileUploaderDropzoneInstructions").inner_text()
    most = int(re.search(r"(\d+)MB", said)[1]) * 1_000_000  # type: ignore[index]
    page.keyboard.press("Escape")
    upload(page, "large.zip", bytes(most))
    expect(page.get_by_text("This is not a zip of a saved run: it cannot be opened")).to_be_visible(timeout=LONG_MS)


def test_undo_restores_deleted_runs(page: Page) -> None:
    tick(page, "the best", "second")
    page.get_by_role("button", name="Delete").click()
    expect(page.get_by_text("Deleted 2 runs.")).to_be_visible()
    expect(names(page)).to_have_text(["third"])
    page.get_by_role("button", name="Undo").click()
    expect(page.get_by_text("2 runs restored.")).to_be_visible()
    expect(names(page)).to_have_text(["the best", "third", "second"])


def test_chosen_runs_open_in_compare_and_one_in_the_lab(page: Page) -> None:
    tick(page, "the best", "third")
    compare = page.get_by_test_id("stMain").get_by_role("link", name="Compare")
    compare.click()
    expect(page.get_by_text("gpt-tiny · measured")).to_have_count(2)
    expect(page).to_have_url(re.compile("/compare[?]with=run%3Athe(%20|[+])best"))
    page.get_by_role("link", name="Open in the Lab").first.click()
    expect(page.get_by_role("heading", name=re.compile("^Measured: gpt-tiny on dp1.tp1.pp2"))).to_be_visible()


def test_the_list_works_with_the_keyboard_alone(own: Server, page: Page) -> None:
    box = page.get_by_role("checkbox", name="Select third")
    box.focus()
    page.keyboard.press("Space")
    expect(page.get_by_text("1 run chosen")).to_be_visible()
    expect(box).to_be_focused()
    page.get_by_role("button", name="Loss").focus()
    page.keyboard.press("Enter")
    expect(page.locator("th[aria-sort]")).to_have_text("Loss ↓")
    expect(page.get_by_role("button", name="Loss")).to_be_focused()
