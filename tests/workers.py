"""How `make test` shares the tests among worker processes. Plain `pytest` runs all of them in one process, in order."""

from __future__ import annotations

from pathlib import PurePosixPath

from xdist.scheduler import LoadScopeScheduling

# Files whose tests share runs: those of tests/covering.py take minutes, and each is made once in a process.
_OF_COVERING_RUNS = {
    "tests/engine/test_families.py", "tests/engine/test_parity.py", "tests/engine/test_schedules_run.py",
    "tests/predict/test_agreement.py", "tests/predict/test_memory.py",
}  # fmt: skip
_TOGETHER = ("tests/browser",)  # folders whose tests share a browser and a server


class FileScheduling(LoadScopeScheduling):
    """A worker takes whole files, in the order in which they are collected: fixtures of a module are made once.

    Some files go to one worker together. Fixtures of a session are made once in each worker that asks for them.
    """

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        if file in _OF_COVERING_RUNS:
            return "covering runs"
        folder = str(PurePosixPath(file).parent)
        return folder if folder in _TOGETHER else file
