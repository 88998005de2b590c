"""A class: who may enter, what each may run and keep, whose runs are whose, and the teacher's page."""

from __future__ import annotations

import errno
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

from engine import files, run_archive, store
from engine.launch.queue.run_queue import RunState
from engine.spec import LayoutSpec, RequestError, RunSpec, WorkloadSpec
from pages.shared.classroom import REMEMBERED_S, Classroom, Person, Rules, readable
from pages.shared.service import SECRET, Service
from pages.shared.texts import FOLDER
from tests.pages.opened import button, click, link, opened, text
from tests.pages.stand_in import PAIR, Queue, saved, service
from tests.patience import PATIENCE_S


@pytest.fixture
def classroom(tmp_path: Path) -> Classroom:
    return Classroom(tmp_path, Rules(ranks=4, seconds=60, runs=2, megabytes=1, people=4))


def entered(classroom: Classroom, name: str = "Ada", code: str | None = None) -> Person:
    person = classroom.person(classroom.enter(code or classroom.code, name))
    assert person is not None
    return person


def refusal(classroom: Classroom, spec: RunSpec, person: Person, *unfinished: RunState) -> str:
    with pytest.raises(RequestError) as caught:
        classroom.allowed(spec, person, unfinished, Path("/texts"))
    return str(caught.value)


# ----------------------------------------------------------------------------------------------------------- who may enter


def test_the_code_lets_in_and_another_does_not(classroom: Classroom) -> None:
    assert len(classroom.code) == 8
    assert len(classroom.teacher_code) == 16
    assert not entered(classroom).teacher
    assert entered(classroom, code=readable(classroom.code).lower()).name == "Ada"
    assert entered(classroom, "Grace", classroom.teacher_code).teacher
    for wrong in ("", classroom.code[:-1], classroom.code + "A", "ÄÖ", classroom.teacher_code[:8]):
        with pytest.raises(RequestError, match="this is not the code of this class"):
            classroom.enter(wrong, "Ada")
    assert classroom.person("") is None
    assert classroom.person(classroom.code) is None


@pytest.mark.parametrize("name", ["", "   ", "x" * 41, "a\x00b"])
def test_a_name_is_a_short_line_of_text(classroom: Classroom, name: str) -> None:
    with pytest.raises(RequestError, match="enter a name of up to 40 letters"):
        classroom.enter(classroom.code, name)


def test_a_class_has_so_many_people_and_the_teacher(classroom: Classroom) -> None:
    for _ in range(4):
        entered(classroom)
    with pytest.raises(RequestError, match="this class is full: 4 people have entered"):
        classroom.enter(classroom.code, "Ada")
    assert entered(classroom, code=classroom.teacher_code).teacher


def test_who_entered_a_day_ago_takes_no_place_and_is_forgotten_without_runs_and_texts(
    classroom: Classroom, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keeps_nothing, has_a_run, has_a_text, _ = (entered(classroom) for _ in range(4))
    store.set_owner(saved(tmp_path, PAIR), has_a_run.id)
    classroom.note_text(has_a_text, "0123456789abcdef", 1, ())
    now = time.time() + REMEMBERED_S
    monkeypatch.setattr(time, "time", lambda: now)
    last = entered(classroom)
    assert [person.id for person in classroom.people()] == [has_a_run.id, has_a_text.id, last.id]
    assert Classroom(tmp_path, Rules()).people() == classroom.people()
    assert classroom.name_of(keeps_nothing.id) == ""


def test_what_cannot_be_written_is_told_and_not_kept(classroom: Classroom, monkeypatch: pytest.MonkeyPatch) -> None:
    ada = entered(classroom)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files, "write", full)
    for attempt in (
        lambda: classroom.enter(classroom.code, "Eve"),
        lambda: classroom.note_text(ada, "0123456789abcdef", 1, ()),
    ):
        with pytest.raises(RequestError, match=r"the class could not be kept in .*: No space left on device"):
            attempt()
    assert classroom.people() == [ada]


def test_a_restarted_server_knows_its_class(classroom: Classroom, tmp_path: Path) -> None:
    secret = classroom.enter(classroom.code, "Ada")
    again = Classroom(tmp_path, Rules())
    assert (again.code, again.teacher_code) == (classroom.code, classroom.teacher_code)
    assert again.person(secret) == classroom.person(secret)
    (file,) = tmp_path.iterdir()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert secret not in file.read_text()
    file.write_text('{"code": ')
    with pytest.raises(RequestError, match=r"\.classroom\.json is damaged; without it the class gets new codes"):
        Classroom(tmp_path, Rules())


# ------------------------------------------------------------------------------------------------------- what each may take


def test_a_run_is_bounded_in_ranks_number_and_time(classroom: Classroom) -> None:
    ada, teacher = entered(classroom), entered(classroom, code=classroom.teacher_code)
    wide = RunSpec(layout=LayoutSpec(dp=8))
    assert refusal(classroom, wide, ada) == "dp8.tp1.pp1 is 8 ranks, and in this class a run has at most 4"
    assert classroom.allowed(wide, teacher, (), Path("/texts")) == wide
    own, other = RunState("1", PAIR, ada.id), RunState("2", PAIR, teacher.id)
    assert classroom.allowed(PAIR, ada, (own, other), Path("/texts")).workload.time_limit == 60
    assert refusal(classroom, PAIR, ada, own, other, own).startswith("you have 2 runs that wait or are active")
    short = PAIR.model_copy(update={"workload": WorkloadSpec(time_limit=5.0)})
    assert classroom.allowed(short, ada, (), Path("/texts")) == short


def test_no_file_is_read_by_its_name(classroom: Classroom) -> None:
    for person in (entered(classroom), entered(classroom, code=classroom.teacher_code)):
        for path in ("/etc/passwd", "/texts/../etc/passwd", "texts/0123456789abcdef.txt"):
            spec = PAIR.model_copy(update={"workload": WorkloadSpec(text=path)})
            assert (
                refusal(classroom, spec, person)
                == "in a class a text is uploaded, and no file of this machine is read by its name"
            )
        good = PAIR.model_copy(update={"workload": WorkloadSpec(text="/texts/0123456789abcdef.txt")})
        classroom.allowed(good, person, (), Path("/texts"))


def test_runs_and_texts_of_a_person_are_bounded_in_bytes(classroom: Classroom, tmp_path: Path) -> None:
    ada, other = entered(classroom), entered(classroom)
    run = saved(tmp_path, PAIR, "run")
    store.set_owner(run, ada.id)
    with (run / "spans.parquet").open("r+b") as file:
        file.truncate(600_000)
    classroom.refuse_bytes(ada, 300_000, ())
    with pytest.raises(RequestError, match=r"would take 1\.1 MB, and in this class each may keep 1 MB; delete runs"):
        classroom.refuse_bytes(ada, 450_000, ())
    classroom.refuse_bytes(other, 450_000, ())
    classroom.note_text(ada, "0123456789abcdef", 300_000, ())
    classroom.note_text(ada, "0123456789abcdef", 300_000, ())  # the same text again
    (_, runs, kept), (_, no_runs, nothing) = classroom.kept()
    assert (runs, kept) == (1, store.size(run) + 300_000)
    assert (no_runs, nothing) == (0, 0)


def test_a_text_that_no_run_uses_makes_room(classroom: Classroom, tmp_path: Path) -> None:
    ada, other = entered(classroom), entered(classroom)
    names = [16 * digit for digit in "abcdef"]
    paths = [tmp_path / FOLDER / f"{name}.txt" for name in names]
    (tmp_path / FOLDER).mkdir()
    for name, path in zip(names[:4], paths, strict=False):
        classroom.note_text(ada, name, 240_000, ())
        path.write_bytes(b"text")
    in_saved, waiting, unused, of_both = (
        PAIR.model_copy(update={"workload": WorkloadSpec(text=str(path))}) for path in paths[:4]
    )
    saved(tmp_path, in_saved, "run")
    classroom.note_text(other, names[3], 240_000, ())
    classroom.note_text(ada, names[4], 240_000, [waiting])
    assert [path.exists() for path in paths[:4]] == [True, True, False, True]
    assert list(classroom.people()[0].texts) == [names[0], names[1], names[4]]
    with pytest.raises(RequestError, match="each may keep 1 MB"):
        classroom.note_text(
            ada,
            names[5],
            300_000,
            [waiting, unused, of_both, in_saved.model_copy(update={"workload": WorkloadSpec(text=str(paths[4]))})],
        )


def test_a_deleted_run_can_be_restored_until_its_bytes_are_needed(classroom: Classroom, tmp_path: Path) -> None:
    ada = entered(classroom)
    run = saved(tmp_path, PAIR, "run")
    store.set_owner(run, ada.id)
    with (run / "spans.parquet").open("r+b") as file:
        file.truncate(600_000)
    deleted = store.delete(run)
    classroom.refuse_bytes(ada, 300_000, ())
    assert deleted.exists()
    classroom.refuse_bytes(ada, 450_000, ())
    assert not deleted.exists()


def test_a_runs_owner_stays_with_it_and_is_not_in_its_zip(classroom: Classroom, tmp_path: Path) -> None:
    ada, other, teacher = entered(classroom), entered(classroom), entered(classroom, code=classroom.teacher_code)
    run = saved(tmp_path, PAIR, "run")
    assert not classroom.may_change(run, ada)
    store.set_owner(run, ada.id)
    moved = store.restore(store.delete(store.rename(run, "renamed")))
    assert [classroom.may_change(moved, person) for person in (ada, other, teacher)] == [True, False, True]
    assert ada.id.encode() not in run_archive.pack(moved)
    assert store.load(moved).spec == PAIR


# ------------------------------------------------------------------------------------------------------------------- pages


def _door(service):
    import streamlit as st

    from pages.shared import entry

    if service.person() is None:
        entry.show(service)
    else:
        st.markdown(f"inside: {service.person().name}")


def test_the_door_says_what_is_wrong_and_lets_in(classroom: Classroom, tmp_path: Path) -> None:
    app = AppTest.from_function(_door, args=(service(tmp_path, classroom)[0],), default_timeout=PATIENCE_S).run()
    for code, told in (("nonsense", "This is not the code of this class"), (classroom.code, "inside: Ada")):
        app.text_input[0].set_value(code)
        app.text_input[1].set_value("Ada")
        button(app, "Enter").click().run()
        assert not app.exception
        assert told in text(app)


def within(app: AppTest, classroom: Classroom, code: str, name: str = "Ada") -> Person:
    """Enter the class in this session."""
    secret = classroom.enter(code, name)
    app.session_state[SECRET] = secret
    app.run()
    person = classroom.person(secret)
    assert person is not None
    return person


@pytest.fixture
def parts(classroom: Classroom, tmp_path: Path) -> tuple[Service, Queue]:
    return service(tmp_path, classroom)


def test_only_ones_own_runs_can_be_renamed_and_deleted(
    parts: tuple[Service, Queue], classroom: Classroom, tmp_path: Path
) -> None:
    runs = [saved(tmp_path, PAIR, name) for name in ("mine", "other")]
    app = opened("runs", parts[0], picked="mine")
    me = within(app, classroom, classroom.code)
    store.set_owner(runs[0], me.id)
    store.set_owner(runs[1], entered(classroom).id)
    app.run()
    assert not button(app, "Delete").disabled
    app = opened("runs", parts[0], picked="other")
    within(app, classroom, classroom.code)
    assert button(app, "Delete").disabled
    within(app, classroom, classroom.teacher_code)
    assert not button(app, "Delete").disabled


def test_only_ones_own_run_can_be_cancelled(parts: tuple[Service, Queue], classroom: Classroom) -> None:
    service, queue = parts
    other = entered(classroom)
    run = queue.submit(PAIR, other.id)
    app = opened("lab", service, run=run)
    within(app, classroom, classroom.code)
    assert button(app, "Cancel").disabled
    within(app, classroom, classroom.teacher_code)
    button(app, "Cancel").click().run()
    assert queue.states[run].phase == "cancelled"


def test_what_the_class_does_not_allow_is_told_before_the_press(parts: tuple[Service, Queue], classroom: Classroom) -> None:
    service, queue = parts
    app = opened("lab", service)
    within(app, classroom, classroom.code)
    assert button(app, "Run on 8 processes").disabled
    assert "Cannot run yet: dp2.tp2.pp2 is 8 ranks, and in this class a run has at most 4." in text(app)
    app.query_params["spec"] = "gpt-tiny~dp1.tp2.pp2~1f1b"
    app.run()
    button(app, "Run on 4 processes").click().run()
    button(app, "Queue a run on 4 processes").click().run()
    assert button(app, "Queue a run on 4 processes").disabled
    assert "Cannot run yet: you have 2 runs that wait or are active" in text(app)
    queue.cancel("run-1")
    app.run()
    assert not button(app, "Queue a run on 4 processes").disabled


def test_after_a_reload_ones_runs_are_listed_until_shown_or_dismissed(parts: tuple[Service, Queue], classroom: Classroom) -> None:
    service, queue = parts
    app = opened("lab", service)
    me = within(app, classroom, classroom.code)
    for by in (me.id, me.id, entered(classroom).id):
        queue.submit(PAIR, by)
    name = "gpt-tiny · dp1.tp1.pp2 · 1F1B"
    app.run()
    assert text(app).count(name) == 2
    next(b for b in app.button if b.key == "run/end/run-0").click().run()
    assert f"{name}  \nCancelled." in text(app)
    assert [queue.states[run].phase for run in ("run-0", "run-1", "run-2")] == ["cancelled", "queued", "queued"]
    click(app, "Dismiss")
    assert text(app).count(name) == 1
    click(app, "Show")
    assert link(app, "run") == "run-1"


def test_who_has_not_entered_can_start_nothing(parts: tuple[Service, Queue]) -> None:
    app = opened("lab", parts[0])
    next(b for b in app.button if b.label.startswith("Run on")).click().run()
    assert "This run was refused: enter the class first" in text(app)
    assert parts[1].states == {}


def test_the_teacher_sees_who_runs_and_ends_it(parts: tuple[Service, Queue], classroom: Classroom, tmp_path: Path) -> None:
    service, queue = parts
    ada, eve = entered(classroom, "Ada"), entered(classroom, "*Eve*")
    first, second = queue.submit(PAIR, ada.id), queue.submit(PAIR, eve.id)
    queue.becomes(first, phase="running", step=2)
    store.set_owner(saved(tmp_path, PAIR, "run"), ada.id)
    app = opened("teacher", service)
    within(app, classroom, classroom.teacher_code, "Grace")
    assert not app.exception
    assert readable(classroom.code) in text(app)
    assert "**Ada** · dp1.tp1.pp2 · Step **2** of 20" in text(app)
    assert r"**\*Eve\*** · dp1.tp1.pp2 · Waiting" in text(app)
    assert app.dataframe[0].value["Saved runs"].tolist()[:2] == [1, 0]
    next(b for b in app.button if b.key == f"teacher/end/{second}").click().run()
    assert queue.states[second].phase == "cancelled"
    button(app, "Delete them").click().run()
    assert store.listing(tmp_path) == []
    assert "1 run deleted." in text(app)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--ranks", "0"], "0 is less than 1"),
        (["--runs", "/dev/null/runs"], "the class cannot be opened: cannot make the folder /dev/null/runs for runs"),
    ],
    ids=["ranks", "folder"],
)
def test_a_class_that_cannot_be_opened_says_why(arguments: list[str], said: str) -> None:
    command = [sys.executable, "-m", "pages.shared.start_classroom", *arguments]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=PATIENCE_S)
    assert ended.returncode == 2
    assert said in ended.stderr
