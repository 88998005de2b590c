"""Damaged or made-up saved runs: refused with a sentence, or shown without an exception."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from engine import contract, run_archive, store
from engine.export import csv_zip, perfetto
from engine.predict.run import predict
from engine.predict.spans import projected
from engine.schedule import plan
from engine.schedule.timeline import simulate
from engine.spec import RequestError
from engine.spec.sentence import packed
from engine.tables import SCHEMAS, RunResult, memory_errors, traffic_differences
from pages.charts import matrix, multiples
from pages.charts.look import View, look
from pages.compare.columns import Column
from pages.compare.differences import differences
from pages.compare.page import figures as compared
from pages.lab import events, sentences
from pages.lab.figures import figures, parity
from pages.runs.report import drawings
from pages.runs.rows import RunIndex
from tests.pages.stand_in import PAIR, dry_run_of, saved

VIEW = View("light", "en")
STYLE = look(VIEW)
SAY = STYLE.say
_NOTHING: tuple[Any, ...] = (None, "", "x", -1, 0, 0.5, 10**30, [], {}, [[]], True, "\ud800", "\0", "<b>", "𝔘" * 50)
_WHOLE = (-(2**63), -(2**53), -2, -1, 0, 1, 2, 7, 2**31, 2**53, 2**53 + 1, 2**62)
_FRACTIONS = (float("nan"), float("inf"), -float("inf"), -1.0, 0.0, 5e-324, 1e300)
_WORDS = (
    "",
    " ",
    "a",
    "0",
    "0,1",
    "1,0",
    "0,0",
    "0,1,2",
    "00,1",
    ",",
    "F",
    "send",
    "step",
    "F chunk 0",
    "dp",
    "\0",
    "<b>",
    "größe",
)


def shown(result: RunResult) -> None:
    """Show a run in the Lab, the report, Compare and the command line."""
    spec, tables = result.spec, result.tables
    mesh = spec.layout.mesh
    measured = contract.source(result) == "measured"
    if measured:  # the Lab only says that it cannot be shown
        assert figures(result, SAY)
        parity(result, SAY)
    assert all(drawing.title for drawing in drawings(result, STYLE))
    for measure in ("wire", "payload"):
        matrix.matrix(tables["traffic"], mesh, measure, STYLE)
    if measured and not spec.generate.skip_training:
        simulate(plan(spec.layout, spec.workload.microbatches, spec.model.parts.tied), projected(spec, tables["spans"]))
        path = events.walk(spec, tables["traffic"], events.MicrobatchPath(0), tables["spans"])
        assert all(sentences.headline(event, SAY) and sentences.sentences(event, spec, SAY) for event in path)
    for other in (predict(spec), result):
        memory_errors(result, other)
        traffic_differences(result, other)
        differences(other, result, SAY)
    assert compared(Column("run.x", result, contract.source(result)))
    multiples.memory(tables["memory_peak"], result.summary["peak_bytes"], STYLE)
    csv_zip(result)
    json.loads(perfetto(result))


# --------------------------------------------------------------------------------------------------------- what is damaged


def damaged(folder: Path, chance: random.Random) -> str:
    """Make one change in a saved run. Returns a description of it."""
    if chance.random() < 0.4:
        return _damage_head(folder / "run.json", chance)
    name = chance.choice([name for name in SCHEMAS if (folder / f"{name}.parquet").exists()])
    return _damage_table(folder / f"{name}.parquet", chance)


def _damage_head(path: Path, chance: random.Random) -> str:
    head = json.loads(path.read_text(encoding="utf-8"))
    places: list[tuple[Any, Any]] = []

    def note(inside: Any) -> None:
        for key in inside if isinstance(inside, dict) else range(len(inside)):
            places.append((inside, key))
            if isinstance(inside[key], (dict, list)):
                note(inside[key])

    note(head)
    inside, key = chance.choice([place for place in places if place[0] is not head and place[0] is not head["spec"]])
    if chance.random() < 0.2:
        del inside[key]
        what = f"without {key}"
    else:
        inside[key] = chance.choice(_NOTHING)
        what = f"{key}={inside[key]!r}"
    path.write_text(json.dumps(head), encoding="utf-8")
    return f"run.json {what}"


def _damage_table(path: Path, chance: random.Random) -> str:
    rows = pd.read_parquet(path)
    column = chance.choice(list(rows.columns))
    kind = str(rows[column].dtype)
    junk = {"int64": _WHOLE, "float64": _FRACTIONS, "str": _WORDS}[kind]
    value = chance.choice([*junk, *rows[column].unique().tolist()])
    some = chance.choice([[], [0], list(range(len(rows)))[: 1 + len(rows) // 2], list(range(len(rows)))])
    some = [at for at in some if at < len(rows)]
    how: dict[str, Callable[[], pd.DataFrame]] = {
        "value": lambda: rows.assign(**{column: rows[column].where(~rows.index.isin(some), value)}),
        "all": lambda: rows.assign(**{column: pd.Series([value] * len(rows), dtype=kind)}),
        "nothing": lambda: rows.assign(**{column: rows[column].where(~rows.index.isin(some), None)}),
        "less": lambda: rows.drop(index=rows.index[some]),
        "twice": lambda: pd.concat([rows, rows.iloc[some]], ignore_index=True),
        "turned": lambda: rows.iloc[::-1].reset_index(drop=True),
        "without": lambda: rows.drop(columns=column),
        "type": lambda: rows.astype({column: chance.choice(["str", "float32", "category"])}),
    }
    named = chance.choice([*how, "value", "value", "all", "less", "twice"])
    how[named]().to_parquet(path, index=False)
    return f"{path.name} {named} {column} {value!r} in {len(some)} of {len(rows)} rows"


def refused(folder: Path) -> str:
    """The sentence that refuses the run in `folder`; "" if it is shown."""
    rows, broken = RunIndex(folder.parent).read()
    try:
        result = store.load(folder)
    except RequestError as error:
        json.dumps(packed(error.sentence))  # another process would encode it like this
        return str(error)
    assert len(rows) == 1
    assert not broken
    shown(result)
    return ""


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("sound"), PAIR)


def test_an_undamaged_run_is_shown(sound: Path) -> None:
    assert refused(sound) == ""


def test_a_dry_run_of_one_rank_can_be_uploaded_and_shown(tmp_path: Path) -> None:
    store.save(dry_run_of(PAIR, 1), tmp_path / "there" / "rank 1")
    folder = run_archive.unpack(run_archive.pack(tmp_path / "there" / "rank 1"), tmp_path / "here", "x")
    assert refused(folder) == ""
    assert {event["pid"] for event in json.loads(perfetto(store.load(folder)))["traceEvents"]} == {2}


@pytest.mark.parametrize("seed", range(36))
def test_a_damaged_run_is_refused_with_a_sentence_or_shown(sound: Path, tmp_path: Path, seed: int) -> None:
    folder = tmp_path / "run"
    shutil.copytree(sound, folder)
    what = damaged(folder, random.Random(seed))
    said = refused(folder)
    assert "\n" not in said, what
    assert not said or "is not a saved run: " in said, what


def test_a_zip_with_wrong_bytes_is_refused_with_a_sentence(sound: Path, tmp_path: Path) -> None:
    """Anywhere in the file. The zip's checksums find wrong data."""
    zipped = run_archive.pack(sound)
    for seed in range(40):
        chance, content = random.Random(seed), bytearray(zipped)
        for _ in range(chance.choice([1, 3, 20])):
            content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
        with suppress(RequestError):  # or the byte has no meaning
            store.load(run_archive.unpack(bytes(content), tmp_path, "x"))
