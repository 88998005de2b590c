"""The engine as a library: what `from engine import …` offers a script or a notebook."""

from __future__ import annotations

import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import pandas as pd
import psutil
import pytest

import engine
from engine import catalog, store, tables
from engine.__main__ import main
from engine.devices import DEVICES
from tests.launch.bench import all_end, hosts, small
from tests.patience import PATIENCE_S

ENDLESS = """
import signal
import sys
import engine
from tests.launch.bench import small

signal.signal(signal.SIGINT, signal.default_int_handler)  # whoever started the tests may have had it ignored
engine.run(small("dp2.tp1.pp1", steps=10000), sys.argv[1], progress=lambda state: print(state.step, flush=True))
"""


Started = Callable[[], list[psutil.Process]]


@pytest.fixture
def started() -> Started:
    """The active warm hosts that the test has started, without those of other tests."""
    before = set(hosts())
    return lambda: [host for host in hosts() if host not in before]


def python(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder for temporary folders."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_importing_engine_loads_no_other_library() -> None:
    assert python("import sys, engine; print({'numpy', 'pandas', 'pydantic', 'torch'} & sys.modules.keys())") == "set()\n"


def test_every_name_of_engine_exists_and_none_needs_torch() -> None:
    code = "import sys, engine; print(all(hasattr(engine, name) for name in engine.__all__), 'torch' in sys.modules)"
    assert python(code) == "True False\n"
    assert set(engine.__all__) <= set(dir(engine))
    assert not hasattr(engine, "nothing")


def test_engine_predict_is_the_function_after_imports_of_its_package_too() -> None:
    code = "import engine.predict.memory, engine.predict.run, engine; print(engine.predict(engine.RunSpec()).environment)"
    assert python(code) == "{'source': 'formula'}\n"


def test_runs_are_measured_reported_and_saved_until_the_iterator_is_closed(tmp_path: Path, started: Started) -> None:
    specs, told = [small("dp1.tp2.pp1"), small("dp2.tp1.pp1")], list[engine.RunState]()
    iterator = engine.run_each([*specs, small()], str(tmp_path), told.append)
    results = list(islice(iterator, len(specs)))
    assert [result.spec for result in results] == specs
    assert {source for result in results for source in result.tables["memory_peak"]["source"]} == {"measured"}
    folders = [state.folder for state in told if state.folder]
    assert sorted(store.listing(tmp_path)) == sorted(folders)
    for folder, result in zip(folders, results, strict=True):
        pd.testing.assert_frame_equal(engine.load(str(folder)).tables["steps"], result.tables["steps"])
    assert len(started()) == 1, "one process imports torch for all of them"
    iterator.close()
    assert started() == []


def test_a_rank_that_fails_is_an_error_with_its_traceback_and_leaves_nothing(scratch: Path, started: Started) -> None:
    with pytest.raises(engine.RunError, match=r"^rank 1 \(.*\) failed in step 2: .*RuntimeError: drill") as caught:
        engine.run(small(fault="raise:1@2"))
    assert caught.value.rank == 1
    assert caught.value.traceback.startswith("Traceback (most recent call last):")
    shown = "".join(traceback.format_exception(caught.value))
    assert 'RuntimeError(f"drill' in shown.partition("RunError: rank 1 ")[2], (
        "the rank's traceback is not what an uncaught error shows"
    )
    assert started() == []
    assert list(scratch.iterdir()) == []


def test_a_run_that_this_machine_cannot_run_is_refused_and_leaves_nothing(scratch: Path, started: Started) -> None:
    with pytest.raises(engine.RequestError, match="is 32 ranks; this machine runs at most 16"):
        engine.run(small("dp16.tp2.pp1"))
    assert started() == []
    assert list(scratch.iterdir()) == []


def test_ctrl_c_ends_a_run_and_its_processes(tmp_path: Path) -> None:
    command = [sys.executable, "-c", ENDLESS, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as script:
        try:
            assert script.stdout is not None
            while int(script.stdout.readline()) < 1:  # finished steps
                pass
            (host,) = hosts(psutil.Process(script.pid))
            left = [host, *host.children()]
            assert len(left) == 3
            script.send_signal(signal.SIGINT)
            said = script.communicate(timeout=PATIENCE_S)[1]
        finally:
            script.kill()
    assert said.splitlines()[-1] == "KeyboardInterrupt"
    assert all_end(left)
    assert list(tmp_path.iterdir()) == []


def test_a_prediction_and_a_dry_run_have_the_tables_of_a_run(scratch: Path) -> None:
    spec, done = small("dp2.tp2.pp2"), list[tuple[int, int]]()
    predicted, dry_run = engine.predict(spec), engine.dry_run(spec, rank=5, progress=lambda *ranks: done.append(ranks))
    for name in ("memory_peak", "traffic"):
        formula, dry = predicted.tables[name], dry_run.tables[name]
        assert set(dry["source"]) == {"dry_run"}
        joined = tables.compared(name, dry, formula[formula["rank"] == 5])
        for number in {column.removesuffix("_measured") for column in joined if column.endswith("_measured")}:
            pd.testing.assert_series_equal(joined[f"{number}_measured"], joined[f"{number}_predicted"], check_names=False)
    assert done == [(1, 1)]
    assert list(scratch.iterdir()) == []


def test_a_search_is_that_of_the_command_line(tmp_path: Path) -> None:
    plan = engine.search("gpt2-1.5b", 8, "rtx-4090")
    file = tmp_path / "all.csv"
    assert main(["search", "--model", "gpt2-1.5b", "--ranks", "8", "--device", "rtx-4090", "--out", str(file)]) == 0
    assert file.read_text() == plan.layouts.to_csv(index=False)
    assert plan.spec(0).layout.code == plan.layouts["layout"].iloc[0]
    same = engine.search(catalog.model("gpt2-1.5b"), 8, DEVICES["rtx-4090"], global_batch=16)
    pd.testing.assert_frame_equal(same.layouts, plan.layouts)


def test_a_folder_without_a_saved_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(engine.RequestError, match="is not a saved run: there is no run"):
        engine.load(tmp_path)
