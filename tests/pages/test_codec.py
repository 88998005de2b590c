"""Calls and answers between processes: values are unchanged, and anything else is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

from engine.devices import DEVICES
from engine.papers.reference import Reference
from engine.spec import RunSpec, Sentence, sentence
from engine.wire import WireError, pack, unpack
from pages.learn.search_summary import SearchSummary
from pages.plan.found import Found, found
from pages.plan.request import Request
from pages.shared.codec import decoded, encoded, packed_call, read_answer, read_call

VALUES = [
    (None, None),
    (int | None, 3),
    (float, 0.1),
    (str, "größer"),
    (bytes, b"\x00\xff"),
    (list[int], [1, 2]),
    (tuple[float, ...], (1.0, 2.5)),
    (dict[str, Any], {"a": [1, None, "b"]}),
    (RunSpec, RunSpec()),
    (Request, Request(own=(1.0, 2.0), called="mine")),
    (list[Reference], [Reference("paper", "7 B", "dp2", "memory", 1.0, 1.1, exact=True)]),
]


def through(kind: Any, value: Any) -> Any:
    """The value as another process gets it."""
    parts: dict[str, bytes] = {}
    head, read = unpack(pack(encoded(value, parts), parts))
    return decoded(kind, head, read)


@pytest.mark.parametrize(("kind", "value"), VALUES)
def test_a_value_survives_encoding(kind: Any, value: Any) -> None:
    assert through(kind, value) == value


def test_a_decoded_sentence_can_be_translated() -> None:
    told = sentence("needs {need}", need=sentence("{n} more", n=2))
    for back in (through(str, told), through(dict[str, Any], {"reason": told})["reason"]):
        assert isinstance(back, Sentence)
        assert (back, back.template, back.values["need"].template) == ("needs 2 more", "needs {need}", "{n} more")


def test_arrays_and_tables_keep_their_types() -> None:
    array = np.arange(6, dtype=np.int32).reshape(2, 3)
    back = through(np.ndarray, array)
    assert back.dtype == array.dtype
    assert (back == array).all()
    back[0, 0] = 7  # not a view of the message
    table = pd.DataFrame({"a": [1, 2], "b": pd.Categorical(["x", "y"]), "c": [0.5, float("nan")]}, index=[3, 9])
    assert through(pd.DataFrame, table).equals(table)


def test_the_result_of_a_search_survives_encoding() -> None:
    asked = Request(model="gpt2-1.5b", ranks=8, batch=16)
    there = found(asked)
    here = through(Found, there)
    assert (here.count, here.feasible, here.device) == (there.count, there.feasible, there.device)
    assert here.layouts.astype(dict.fromkeys(here.layouts.select_dtypes("category"), str)).equals(
        there.layouts.astype(dict.fromkeys(there.layouts.select_dtypes("category"), str))
    )
    assert here.spec(0) == there.spec(0)
    assert here.parts(0) == there.parts(0)


@pytest.mark.parametrize(
    ("kind", "written", "says"),
    [
        (int, "3", "'3' is no int"),
        (bool, 1, "'1' is no bool"),
        (float, 10**400, "no float"),
        (int | None, "x", "none of"),
        (tuple[int, int], [1], "no tuple"),
        (RunSpec, {"model": {"layers": -1}}, "no RunSpec: layers=-1 must be greater than"),
        (SearchSummary, [1, 2], "no SearchSummary"),
        (np.ndarray, {"part": "0", "dtype": "<i8", "shape": [2]}, "3 bytes are no array int64 of shape"),
        (np.ndarray, {"part": "0", "dtype": "u1", "shape": [float("inf")]}, "'inf' is no whole number"),
        (np.ndarray, {"part": "0", "dtype": "O", "shape": [1]}, "are no array object"),
        (pd.DataFrame, {"part": "0"}, "a table cannot be read"),
        (bytes, {"part": "9"}, "no bytes"),
    ],
)
def test_a_value_of_another_kind_is_refused(kind: Any, written: Any, says: str) -> None:
    with pytest.raises(WireError, match=says):
        decoded(kind, written, {"0": b"abc"})


def test_only_listed_functions_can_be_called_and_only_with_their_arguments() -> None:
    jobs = ("engine.devices.device",)
    function, given = read_call(pack({"job": jobs[0], "given": {"name": "l40s"}}), jobs)
    assert function(**given) == DEVICES["l40s"]
    for head, says in (
        ({"job": "os.system", "given": {}}, "there is no job 'os.system'"),
        ({"job": jobs[0], "given": {"command": "x"}}, "takes no command"),
        ({"job": jobs[0], "given": {"name": 3}}, "'3' is no str"),
        ([1], "a question has a job"),
    ):
        with pytest.raises(WireError, match=says):
            read_call(pack(head), jobs)
    with pytest.raises(TypeError, match="a function cannot be sent"):
        packed_call(sentence, ("",), {"value": through})
    with pytest.raises(TypeError, match="a key that is a int cannot be sent"):
        packed_call(sentence, ("",), {"value": {1: "one"}})


@pytest.mark.parametrize("size", [float("inf"), "12", True, 1.9])
def test_the_memory_in_an_answer_must_be_an_integer(size: Any) -> None:
    with pytest.raises(WireError, match="what memory it took"):
        read_answer(pack({"how": "done", "value": None, "resident_bytes": size}), None)
