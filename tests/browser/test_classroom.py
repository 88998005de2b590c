"""A class in a real browser: the door, what it remembers, and the teacher's page."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.browser.served import LONG_MS, Server, Watched, served

STEP = re.compile(r"^Step \d+ of [\d,]+, loss")


@pytest.fixture(scope="module")
def class_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with served(tmp_path_factory.mktemp("class"), classroom=True) as server:
        yield server


def code(server: Server, of: str) -> str:
    """The code of "this class" or of "teacher" that the server has printed."""
    found = re.search(rf"{of}[a-z ]*(?:: |with )((?:\w{{4}}-)+\w{{4}})", "".join(server.said))
    assert found, server.said
    return found[1]


def enter(page: Page, code: str, name: str) -> None:
    page.get_by_label("Code of the class").fill(code)
    page.get_by_label("Your name, as the teacher will see it").fill(name)
    page.get_by_role("button", name="Enter").click()


def test_a_class_from_the_door_to_the_end_of_a_run(class_server: Server, browser: Browser) -> None:
    student, teacher = (Watched(browser.new_context(locale="en-US")) for _ in range(2))
    page = student.visit(class_server, "lab", spec="gpt-tiny~dp2.tp1.pp1~1f1b~m64~b2~n10000~r0.003~e0~t86400")
    expect(page.get_by_role("heading", name="Enter the class")).to_be_visible()
    assert page.get_by_role("button", name=re.compile("^Run on")).count() == 0
    enter(page, "AAAA-AAAA", "Ada")
    expect(page.get_by_text("This is not the code of this class; the teacher has it.")).to_be_visible()
    enter(page, code(class_server, "this class"), "Ada")
    page.get_by_role("button", name="Run on 2 processes").click()
    expect(page.get_by_text(STEP)).to_be_visible(timeout=LONG_MS)
    page.reload()  # the browser remembers who entered
    expect(page.get_by_text(STEP)).to_be_visible()
    expect(page.get_by_role("button", name="Cancel")).to_be_enabled()
    assert page.get_by_role("link", name="The class").count() == 0

    other = teacher.visit(class_server, "teacher")
    enter(other, code(class_server, "teacher"), "Grace")
    expect(other.get_by_text(re.compile(r"Ada · dp2\.tp1\.pp1 · Step \d+ of"))).to_be_visible()
    other.get_by_role("button", name="End all").click()
    expect(page.get_by_text(re.compile(r"^Cancelled\."))).to_be_visible()
    expect(other.get_by_text("Nobody runs or waits.")).to_be_visible()
    for watched in (student, teacher):
        watched.close()
        watched.page.context.close()


def test_a_page_of_a_teacher_is_not_there_for_others(class_server: Server, browser: Browser) -> None:
    student = Watched(browser.new_context(locale="en-US"))
    page = student.visit(class_server, "")
    enter(page, code(class_server, "this class"), "Eve")
    expect(page.get_by_role("button", name=re.compile("^Run on"))).to_be_visible(timeout=LONG_MS)
    page.goto(f"{class_server.url}/teacher")
    expect(page.get_by_text(re.compile("Page not found"))).to_be_visible()
    assert student.wrong == ["console: The page that you have requested does not seem to exist. Running the app's main page."]
    page.context.close()
