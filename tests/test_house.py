"""Rules that import contracts and linters cannot check, and the rules of this test suite."""

from __future__ import annotations

import ast
import importlib
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

HOUSE = Path(__file__).parent.parent
COMMUNICATION = Path("engine/parallel/comm.py")
# What other modules may use of torch.distributed: the rendezvous and its errors. No data of a step passes there.
RENDEZVOUS = {"FileStore", "HashStore", "PrefixStore", "Store", "TCPStore", "rendezvous"}
RENDEZVOUS |= {"DistError", "DistNetworkError", "DistStoreError"}
LONGEST = 400  # lines of a file
# What reads or writes pickles, directly or indirectly. Reading a pickle can execute any code.
PICKLING = {"_pickle", "cloudpickle", "concurrent.futures.ProcessPoolExecutor", "dill", "joblib", "marshal", "multiprocessing"}
PICKLING |= {"numpy.load", "pandas.read_pickle", "pickle", "shelve", "torch.load", "torch.save"}
PICKLING_METHODS = {"to_pickle", "all_gather_object", "broadcast_object_list", "gather_object", "scatter_object_list"}
PICKLING_METHODS |= {"recv_object_list", "send_object_list"}
SKIPPING = {f"pytest.{name}" for name in ("importorskip", "mark.skip", "mark.skipif", "mark.xfail", "skip", "xfail")}


def python_files(*folders: str) -> list[Path]:
    """Paths relative to the repository."""
    return sorted(path.relative_to(HOUSE) for folder in folders for path in (HOUSE / folder).rglob("*.py"))


PRODUCT = [Path("app.py"), *python_files("engine", "examples", "pages")]
TESTS = python_files("tests")


def names_used(path: Path) -> Iterator[tuple[str, str]]:
    """(where, full dotted name) of every name and attribute in a file, imports resolved: dist.send → torch.distributed.send."""
    module = ast.parse((HOUSE / path).read_text(encoding="utf-8"), str(path))
    full_names: dict[str, str] = {}
    for node in ast.walk(module):
        if isinstance(node, ast.Import):
            full_names |= {alias.asname: alias.name for alias in node.names if alias.asname}
        elif isinstance(node, ast.ImportFrom):
            full_names |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    for node in ast.walk(module):
        if isinstance(node, (ast.Name, ast.Attribute)) and (name := _dotted(node)):
            head, dot, rest = name.partition(".")
            yield f"{path}:{node.lineno}", full_names.get(head, head) + dot + rest
    for local, full in full_names.items():
        yield f"{path} imports {local}", full


def _dotted(node: ast.expr) -> str:
    """A chain of attributes as text; empty for anything else, such as an attribute of a call's result."""
    if isinstance(node, ast.Name):
        return node.id
    base = _dotted(node.value) if isinstance(node, ast.Attribute) else ""
    return f"{base}.{node.attr}" if isinstance(node, ast.Attribute) and base else ""


def restricted_uses(path: Path) -> list[str]:
    """Uses of torch.distributed in a file that are allowed only in `engine/parallel/comm.py`."""
    return [
        f"{where}: {name}"
        for where, name in names_used(path)
        if name.startswith("torch.distributed.") and name.split(".")[2] not in RENDEZVOUS
    ]


def test_only_comm_py_uses_collectives_and_transfers() -> None:
    assert any("all_reduce" in found for found in restricted_uses(COMMUNICATION)), "the check would not see a collective"
    assert [found for path in PRODUCT if path != COMMUNICATION for found in restricted_uses(path)] == []


def test_data_files_of_the_engine_are_part_of_the_package() -> None:
    with (HOUSE / "pyproject.toml").open("rb") as file:
        named = tomllib.load(file)["tool"]["setuptools"]["package-data"]["engine"]
    found = {path for path in (HOUSE / "engine").rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc")}
    assert found == {path for name in named for path in (HOUSE / "engine").glob(name)}


def pickles(path: Path) -> list[str]:
    """Uses of functions that read or write pickles in a file."""
    return [
        f"{where}: {name}"
        for where, name in names_used(path)
        if name.rpartition(".")[2] in PICKLING_METHODS or any(f"{name}.".startswith(f"{module}.") for module in PICKLING)
    ]


def test_nothing_is_pickled() -> None:
    assert pickles(Path("tests/launch/dry_runs.py")), "the check would not see a pickle"
    assert [found for path in PRODUCT for found in pickles(path)] == []


def test_no_file_is_longer_than_400_lines() -> None:
    lines = {
        str(path): len((HOUSE / path).read_text(encoding="utf-8").splitlines())
        for path in [*PRODUCT, *TESTS, *python_files("benchmarks")]
    }
    assert {path: count for path, count in lines.items() if count > LONGEST} == {}


def test_no_test_is_skipped_or_expected_to_fail() -> None:
    """Tests that need a GPU are marked gpu, and conftest.py alone says where they run."""
    rule = Path("tests/conftest.py")
    assert rule in TESTS
    assert [f"{where}: {name}" for path in TESTS if path != rule for where, name in names_used(path) if name in SKIPPING] == []


# ------------------------------------------------------------------------------------------------- the suite's own rules


@pytest.fixture(scope="module")
def torch() -> ModuleType:
    """Import torch before an inner suite does: pytester unloads what that imports, and torch cannot be imported twice."""
    return importlib.import_module("torch")


@pytest.fixture
def suite(torch: ModuleType, pytester: pytest.Pytester) -> pytest.Pytester:
    """An inner suite under the rules of this one, in this process."""
    pytester.makeconftest((HOUSE / "tests" / "conftest.py").read_text(encoding="utf-8"))
    pytester.makeini("[pytest]\nmarkers = gpu(count=1)")
    return pytester


def test_with_no_skips_a_skipped_test_has_failed(suite: pytest.Pytester) -> None:
    suite.makepyfile(
        """
        import pytest

        def test_runs(): pass

        @pytest.mark.skip(reason="not today")
        def test_marked(): pass

        def test_changes_its_mind(): pytest.skip("on second thoughts")

        @pytest.mark.xfail
        def test_known_to_fail(): assert False
        """
    )
    suite.runpytest().assert_outcomes(passed=1, skipped=2, xfailed=1)
    result = suite.runpytest("--no-skips")
    result.assert_outcomes(passed=1, failed=2, errors=1)  # a mark skips before setup, which pytest reports as error
    result.stdout.fnmatch_lines(
        ["*--no-skips: *not today*", "*--no-skips: *on second thoughts*", "*--no-skips: expected to fail*"]
    )
    assert result.ret == pytest.ExitCode.TESTS_FAILED


def test_with_no_skips_a_skipped_module_has_failed(suite: pytest.Pytester) -> None:
    suite.makepyfile("import pytest; pytest.importorskip('no_such_module')")
    suite.runpytest().assert_outcomes(skipped=1)
    suite.runpytest("--no-skips").assert_outcomes(errors=1)


@pytest.mark.parametrize("processes", [(), ("--numprocesses", "1")], ids=["this process", "a worker"])
def test_without_a_browser_its_tests_are_left_out_and_the_last_line_says_so(
    suite: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, processes: tuple[str, ...]
) -> None:
    suite.makepyfile(
        """
        import pytest

        @pytest.fixture
        def browser(): assert False, "no browser"

        @pytest.fixture
        def page(browser): pass

        def test_of_a_page(page): pass

        def test_of_none(): pass
        """
    )
    monkeypatch.setenv("PATH", str(suite.path))
    result = suite.runpytest(*processes)
    # The process that prints is not told how many a worker has deselected.
    result.assert_outcomes(passed=1, deselected=0 if processes else 1)
    assert result.outlines[-1].startswith(
        "left out: 1 browser test, as there is no browser. Chromium or Chrome must be on the PATH"
    )
    suite.runpytest("--no-skips", *processes).assert_outcomes(passed=1, errors=1)


def test_a_test_that_needs_more_gpus_than_there_are_may_be_skipped(suite: pytest.Pytester) -> None:
    suite.makepyfile("import pytest\n\n@pytest.mark.gpu(count=1_000)\ndef test_on_a_thousand(): pass")
    suite.runpytest("--no-skips").assert_outcomes(skipped=1)
