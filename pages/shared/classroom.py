"""A class: who may enter, how much each may run and keep, and whose runs are whose. No Streamlit.

What it must know after a restart is in a file in the folder of runs, which this user alone can read: the codes, and for each
person a name, the hash of the secret that the browser keeps, and the texts that this person uploaded.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import secrets
import time
from collections import Counter
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from threading import RLock
from typing import Any

from engine import files, store
from engine.launch.queue.run_queue import RunState
from engine.spec import RequestError, RunSpec, sentence
from pages.shared import texts as uploaded

# Without those that look alike. Eight of them are nearly 40 bits: at a thousand guesses a second, half of all codes
# take thirteen years.
_LETTERS = "23456789ABCDEFGHJKMNPQRSTUVWXYZ"
_FILE, _LARGEST = ".classroom.json", 4 << 20
_LONGEST_NAME = 40
REMEMBERED_S = 12 * 3600  # how long a browser remembers who entered, in seconds: a day of lessons
_MB = 1_000_000


@dataclass(frozen=True)
class Rules:
    """What each person may take. The teacher may take what the machine has."""

    ranks: int = 8  # of one run
    seconds: float = 120.0  # of one run
    runs: int = 2  # that wait or are active
    megabytes: int = 200  # of saved runs and texts
    people: int = 100  # that entered within the time that a browser remembers


@dataclass(frozen=True)
class Person:
    id: str  # in the queue and in saved runs; it gives no access
    name: str
    teacher: bool = False
    texts: dict[str, int] = field(default_factory=dict)  # name of each uploaded text → bytes
    entered: float = 0.0  # when, in seconds since 1970


class Classroom:
    """Any thread may call. Raises `OSError` if its file cannot be read, `RequestError` if it is damaged or cannot be written."""

    def __init__(self, home: Path, rules: Rules) -> None:
        self.rules, self._home, self._path = rules, home, home / _FILE
        self.one_at_a_time = RLock()  # between checking a limit and using it up
        self._people: dict[str, Person] = {}  # by id
        if self._path.exists():
            try:
                kept = json.loads(files.read(self._path, _LARGEST))
                self.code, self.teacher_code = kept["code"], kept["teacher_code"]
                self._people = {each["id"]: Person(**each) for each in kept["people"]}
            except (ValueError, TypeError, KeyError) as error:
                why = sentence("{file} is damaged; without it the class gets new codes", file=str(self._path))
                raise RequestError(why) from error
        else:
            self.code, self.teacher_code = _code(8), _code(16)
            self._write(self._people)

    def enter(self, code: str, name: str) -> str:
        """Let somebody in. Returns the secret by which the browser is known from now on. Raises `RequestError`."""
        given, named = code.upper().replace("-", "").replace(" ", ""), " ".join(name.split())
        teacher = _same(given, self.teacher_code)
        if not teacher and not _same(given, self.code):
            raise RequestError(sentence("this is not the code of this class; the teacher has it"))
        if not named or len(named) > _LONGEST_NAME or not named.isprintable():
            raise RequestError(sentence("enter a name of up to {most} letters", most=_LONGEST_NAME))
        secret = secrets.token_urlsafe(24)
        with self.one_at_a_time:
            now = time.time()
            count = sum(now - person.entered < REMEMBERED_S for person in self._people.values())
            if not teacher and count >= self.rules.people:
                raise RequestError(sentence("this class is full: {count} people have entered", count=count))
            people = self._remembered(now) | {_id(secret): Person(_id(secret), named, teacher, entered=now)}
            self._write(people)
            self._people = people
        return secret

    def _remembered(self, now: float) -> dict[str, Person]:
        """Everybody but those whom no browser remembers and who keep nothing."""
        gone = {id for id, person in self._people.items() if now - person.entered >= REMEMBERED_S and not person.texts}
        if gone:
            gone -= {store.owner(folder) for folder in store.listing(self._home)}
        return {id: person for id, person in self._people.items() if id not in gone}

    def person(self, secret: str) -> Person | None:
        """Who keeps this secret. None if nobody does."""
        return self._people.get(_id(secret))

    def name_of(self, id: str) -> str:
        """The name of the person with this id; empty if there is none."""
        return self._people[id].name if id in self._people else ""

    def people(self) -> list[Person]:
        return list(self._people.values())

    # ------------------------------------------------------------------------------------------------------------- limits

    def refuse(self, spec: RunSpec, person: Person, unfinished: Sequence[RunState], texts: Path) -> None:
        """Raise `RequestError` if this person may not start `spec` now. Reads no file.

        `unfinished`: the runs of the queue. `texts`: the folder of uploaded texts; no other file may be read by a run.
        """
        if spec.workload.text is not None and Path(spec.workload.text).parent != texts:
            raise RequestError(sentence("in a class a text is uploaded, and no file of this machine is read by its name"))
        if person.teacher:
            return
        rules, layout = self.rules, spec.layout
        if layout.ranks > rules.ranks:
            raise RequestError(
                sentence(
                    "{layout} is {ranks} ranks, and in this class a run has at most {most}",
                    layout=layout.code, ranks=layout.ranks, most=rules.ranks,
                )
            )  # fmt: skip
        own = sum(state.by == person.id for state in unfinished)
        if own >= rules.runs:
            raise RequestError(
                sentence(
                    "you have {count} runs that wait or are active, and in this class each may have {most}; wait for one, or "
                    "cancel it",
                    count=own, most=rules.runs,
                )
            )  # fmt: skip

    def allowed(self, spec: RunSpec, person: Person, unfinished: Sequence[RunState], texts: Path) -> RunSpec:
        """`spec` with the time limit of the class. Raises `RequestError`: see `refuse` and `refuse_bytes`."""
        self.refuse(spec, person, unfinished, texts)
        if person.teacher:
            return spec
        self.refuse_bytes(person, 0, [spec, *(state.spec for state in unfinished)])
        limit = min(spec.workload.time_limit, self.rules.seconds)
        return spec.model_copy(update={"workload": spec.workload.model_copy(update={"time_limit": limit})})

    def refuse_bytes(self, person: Person, more: int, unfinished: Collection[RunSpec]) -> None:
        """Raise `RequestError` if what this person keeps would be too much with `more` bytes.

        Deleted runs count, because they can be restored; if they take too much space, they are removed for good. Then this
        person's texts are removed that neither a saved run nor one of `unfinished` uses.
        """
        if person.teacher:
            return
        most = self.rules.megabytes * _MB
        with self.one_at_a_time:
            saved, deleted = store.owned(self._home, person.id)
            runs = sum(map(store.size, saved)) + more
            kept = runs + sum(self._people[person.id].texts.values())
            if kept + sum(map(store.size, deleted)) >= most:
                for run in deleted:
                    store.remove_deleted(run)
            if kept >= most:
                self._remove_texts(self._people[person.id], unfinished)
                kept = runs + sum(self._people[person.id].texts.values())
        if kept >= most:
            raise RequestError(
                sentence(
                    "your runs and texts would take {kept:,.1f} MB, and in this class each may keep {most:,} MB; delete runs on "
                    "the page Runs",
                    kept=kept / _MB, most=self.rules.megabytes,
                )
            )  # fmt: skip

    def _remove_texts(self, person: Person, unfinished: Collection[RunSpec]) -> None:
        """Remove a person's texts that no run uses. A file that somebody else uploaded too stays for that person."""
        used = {spec.workload.text for spec in unfinished}
        for run in store.listing(self._home) if person.texts else ():
            with suppress(RequestError):  # a run that cannot be opened shows no text
                used.add(store.head(run).spec.workload.text)
        named = {Path(path).stem for path in used if path is not None}
        unused = person.texts.keys() - named
        self._keep_texts(person, {name: size for name, size in person.texts.items() if name in named})
        for name in unused:
            if not any(name in other.texts for other in self._people.values()):
                (self._home / uploaded.FOLDER / f"{name}.txt").unlink(missing_ok=True)

    def kept(self) -> list[tuple[Person, int, int]]:
        """Each person, with the number of that person's saved runs and the bytes of them and of the texts."""
        runs, sizes = Counter[str](), Counter[str]()
        for folder in store.listing(self._home):
            owner = store.owner(folder)
            runs[owner] += 1
            sizes[owner] += store.size(folder)
        return [(each, runs[each.id], sizes[each.id] + sum(each.texts.values())) for each in self.people()]

    def note_text(self, person: Person, name: str, size: int, unfinished: Collection[RunSpec]) -> None:
        """Count a text as this person's. Raises `RequestError` if it is too much: see `refuse_bytes`."""
        with self.one_at_a_time:
            if name not in self._people[person.id].texts:
                self.refuse_bytes(person, size, unfinished)
                now = self._people[person.id]
                self._keep_texts(now, now.texts | {name: size})

    def _keep_texts(self, person: Person, texts: dict[str, int]) -> None:
        people = self._people | {person.id: replace(person, texts=texts)}
        self._write(people)
        self._people = people

    def may_change(self, folder: Path, person: Person) -> bool:
        """Whether this person may rename or delete a saved run."""
        return person.teacher or store.owner(folder) == person.id

    def _write(self, people: dict[str, Person]) -> None:
        kept: dict[str, Any] = {"code": self.code, "teacher_code": self.teacher_code}
        kept["people"] = [asdict(person) for person in people.values()]
        try:
            self._path.touch(0o600)  # before there is anything to read in it
            files.write(self._path, json.dumps(kept).encode())
        except OSError as error:
            why = sentence("the class could not be kept in {file}: {reason}", file=str(self._path), reason=str(error.strerror))
            raise RequestError(why) from error


def readable(code: str) -> str:
    """K7QF3MWD as K7QF-3MWD."""
    return "-".join(code[at : at + 4] for at in range(0, len(code), 4))


def _code(letters: int) -> str:
    return "".join(secrets.choice(_LETTERS) for _ in range(letters))


def _same(given: str, code: str) -> bool:
    return hmac.compare_digest(given.encode(), code.encode())


def _id(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()[:24]
