"""What all sessions of the server share: the folder of runs, the queue, and the class if there is one."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import streamlit as st
from streamlit.runtime.scriptrunner import get_script_run_ctx

from engine import store
from engine.launch import limits
from engine.launch.queue.run_queue import RunQueue, RunState
from engine.spec import RequestError, RunSpec, sentence
from pages.shared import arguments
from pages.shared.classroom import Classroom, Person
from pages.shared.texts import FOLDER, Texts

_BROWSER = "_streamlit_xsrf"  # Streamlit's own cookie: all tabs of a browser have the same
_JOURNAL = ".queue.jsonl"
COOKIE, SECRET = "shardscope_class", "service/secret"  # the same secret, in the browser and in this session
EXAMPLE = "example"  # the name of the run that comes with the program
_EXAMPLES = Path(__file__).parent / "examples"


@dataclass(frozen=True)
class Service:
    home: Path
    queue: RunQueue
    classroom: Classroom | None = None

    @property
    def texts(self) -> Texts:
        return Texts(self.home / FOLDER, self._note_text)

    def saved(self, name: str) -> Path | None:
        """The example that comes with the program, or the saved run that has this name or had it before it was renamed.

        Only names that are listed are accepted, so no name leads out of these folders.
        """
        listed = (folder for home in (_EXAMPLES, self.home) for folder in store.listing(home))
        return next((folder for folder in listed if folder.name == name), None) or store.current(self.home, name)

    def find(self, run: str) -> RunState | Path | None:
        """The run of a link's parameter `run`: a run of this server by its id, or a saved run by its name."""
        return self.queue.watch(run) or self.saved(run)

    # ------------------------------------------------------------------------------------------------------ who may do what

    def enter(self, code: str, name: str) -> None:
        """Let this session into the class. Raises `RequestError`."""
        assert self.classroom
        st.session_state[SECRET] = self.classroom.enter(code, name)

    @property
    def secret(self) -> str:
        """What this session is known by in the class; empty if by nothing."""
        found = st.session_state.get(SECRET) or st.context.cookies.get(COOKIE) or ""
        return f"{found}"

    def person(self) -> Person | None:
        """Who has this session. None where there is no class, and before entering it."""
        return self.classroom.person(self.secret) if self.classroom else None

    def submit(self, spec: RunSpec) -> str:
        """Queue a run of this reader's and return its id. Raises `RequestError` if it is refused."""
        if self.classroom is None:
            return self.queue.submit(spec, _browser())
        person = self._entered()
        self.classroom.refuse(spec, person, self.queue.unfinished(), self.texts.folder)
        limits.check(spec, self.active())  # it may take seconds the first time, and the lock below holds up the whole class
        with self.classroom.one_at_a_time:
            allowed = self.classroom.allowed(spec, person, self.queue.unfinished(), self.texts.folder)
            return self.queue.submit(allowed, person.id)

    def refusal(self, spec: RunSpec) -> str:
        """Why this reader's class does not let this reader start the run now; empty if it does."""
        person = self.person()
        if self.classroom is not None and person is not None:
            try:
                self.classroom.refuse(spec, person, self.queue.unfinished(), self.texts.folder)
            except RequestError as error:
                return error.sentence
        return ""

    def unfinished(self) -> list[RunState]:
        """This reader's runs that are active or wait."""
        person = self.person()
        by = person.id if person else _browser()
        return [state for state in self.queue.unfinished() if state.by == by]

    def active(self) -> list[RunSpec]:
        """The runs of all readers that have been started and have not ended."""
        return [state.spec for state in self.queue.unfinished() if state.phase != "queued"]

    def may_end(self, run: RunState) -> bool:
        """Whether this reader may cancel a run: in a class, one's own, and the teacher all."""
        person = self.person()
        return self.classroom is None or (person is not None and (person.teacher or run.by == person.id))

    def cancel(self, run: str) -> None:
        """End a run, if this reader may."""
        state = self.queue.state(run)
        if state is not None and self.may_end(state):
            self.queue.cancel(run)

    def may_change(self, folders: Sequence[Path]) -> bool:
        """Whether this reader may rename and delete these saved runs."""
        if self.classroom is None:
            return True
        person = self.person()
        return person is not None and all(self.classroom.may_change(folder, person) for folder in folders)

    def refuse_change(self, folders: Sequence[Path]) -> None:
        """Raise `RequestError` if this reader may not rename and delete these saved runs."""
        if not self.may_change(folders):
            raise RequestError(sentence("in a class, a run is renamed and deleted by the one who made it, or by the teacher"))

    def refuse_name(self, name: str) -> None:
        """Raise `RequestError` for the name of the run that comes with the program: a link with it opens that one."""
        if name == EXAMPLE:
            raise RequestError(sentence("{name} is the name of the run that comes with the program; choose another", name=name))

    def refuse_upload(self, size: int) -> None:
        """Raise `RequestError` if this reader would keep too much with a run of `size` bytes."""
        if self.classroom is not None:
            self.classroom.refuse_bytes(self._entered(), size, self._unfinished_specs())

    def note_uploaded(self, folder: Path) -> None:
        """A run that this reader uploaded is this reader's."""
        if self.classroom is not None:
            store.set_owner(folder, self._entered().id)

    def _note_text(self, name: str, size: int) -> None:
        if self.classroom is not None:
            self.classroom.note_text(self._entered(), name, size, self._unfinished_specs())

    def _unfinished_specs(self) -> list[RunSpec]:
        return [state.spec for state in self.queue.unfinished()]

    def _entered(self) -> Person:
        person = self.person()
        if person is None:
            raise RequestError(sentence("enter the class first"))
        return person


def _browser() -> str:
    """A name for whoever has this session: the same in all tabs of a browser."""
    context = get_script_run_ctx()
    named = st.context.cookies.get(_BROWSER) or (context.session_id if context else "")
    return hashlib.sha256(f"{named}".encode()).hexdigest()[:16]


@st.cache_resource(show_spinner=False, on_release=lambda service: service.queue.close())
def open_service() -> Service:
    """One queue for all sessions of this server. It starts its warm host at once, in the background.

    It is not in app.py, because Streamlit executes app.py again for each rerun, and its functions are new objects then.
    """
    chosen = arguments.of_app()
    home = chosen.runs.absolute()
    queue = RunQueue(home, cores=chosen.cores, journal=home / _JOURNAL)
    return Service(home, queue, Classroom(home, arguments.rules(chosen)) if chosen.classroom else None)


def is_example(folder: Path) -> bool:
    """Whether the run comes with the program, and was not made here."""
    return folder.parent == _EXAMPLES
