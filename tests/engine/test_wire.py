"""Messages between processes: they arrive unchanged, and a damaged or wrong message is one clear error."""

from __future__ import annotations

import json
import os
import struct
import threading
from contextlib import suppress
from typing import Any

import pyarrow as pa
import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st

from engine.reference import compare, publish
from engine.tables import SCHEMAS
from engine.wire import WireError, arrow, pack, pack_rows, receive, send, unpack_rows
from tests.runs import small

ROWS: dict[str, list[dict[str, Any]]] = {
    "steps": [{"step": 1, "loss": 5.5, "grad_norm": float("inf"), "step_ns": 7, "tokens": 64}],
    "memory_peak": [{"rank": 3, "pp": 0, "dp": 1, "cp": 0, "tp": 1, "category": "parameters", "bytes": 2**40}],
    "traffic": [],
    "allocator": [{"rank": 3, "start_bytes": 1, "peak_bytes": 2, "workspace_bytes": 0, "unaccounted_bytes": -1}],
}


def test_rows_come_back_as_they_were() -> None:
    assert unpack_rows(pack_rows(ROWS), 3) == ROWS


@given(st.binary(max_size=200))
def test_malformed_bytes_are_refused(content: bytes) -> None:
    with pytest.raises(WireError):
        unpack_rows(content)


@given(st.integers(0), st.integers(0, 255))
def test_a_message_with_one_wrong_byte_is_read_or_refused(place: int, byte: int) -> None:
    message = bytearray(pack_rows(ROWS))
    message[place % len(message)] = byte
    with suppress(WireError):  # no other error is allowed
        assert unpack_rows(bytes(message)).keys() <= {*SCHEMAS, "allocator"}


def claims(head: Any, tail: bytes = b"") -> bytes:
    written = json.dumps(head).encode()
    return struct.pack("<Q", len(written)) + written + tail


STEPS = pa.table({"step": pa.array([1], pa.int64())})


@pytest.mark.parametrize(
    ("message", "says"),
    [
        (b"abc", "too short"),
        (struct.pack("<Q", 2**60) + b"{}", "cannot have a head of"),
        (claims([]), "head of a message cannot be read"),
        *((claims({"head": None, "parts": [["a", size]]}, b"x"), "is no whole number") for size in ("1", True, 1.0)),
        (claims({"head": None, "parts": [["a", float("inf")]]}), "Infinity is no number here"),
        (claims({"head": float("nan"), "parts": []}), "NaN is no number here"),
        (claims({"head": None, "parts": [["a", -1]]}), "do not add up"),
        (claims({"head": None, "parts": [["a", 2**40]]}, b"x"), "do not add up"),
        (claims({"head": None, "parts": [["a", 1], ["a", 1]]}, b"xy"), "do not add up"),
        (pack({"run": "this"}), "nothing in its head"),
        (pack(None, {"secrets": arrow(STEPS)}), "there is no table 'secrets'"),
        (pack(None, {"steps": b"no table"}), "a table cannot be read"),
        (pack(None, {"steps": arrow(STEPS)}), "the table steps has the columns step int64, loss double"),
        (pack_rows(ROWS | {"memory_peak": [ROWS["memory_peak"][0] | {"rank": 0}]}), "memory_peak has rows of another rank"),
    ],
)
def test_a_malformed_message_is_refused_with_the_reason(message: bytes, says: str) -> None:
    with pytest.raises(WireError, match=says):
        unpack_rows(message, 3)


def test_an_empty_cell_is_refused() -> None:
    columns = {"step": pa.int64(), "loss": pa.float64(), "grad_norm": pa.float64(), "step_ns": pa.int64(), "tokens": pa.int64()}
    with pytest.raises(WireError, match="steps has an empty cell"):
        unpack_rows(pack(None, {"steps": arrow(pa.table({name: pa.array([None], kind) for name, kind in columns.items()}))}))


def test_a_pipe_carries_messages_of_any_length_and_reports_its_end() -> None:
    reading, writing = os.pipe()
    long = os.urandom(1 << 20)  # larger than the buffer of a pipe
    sender = threading.Thread(target=lambda: [send(writing, message) for message in (b"", long)])
    sender.start()
    assert [receive(reading), receive(reading)] == [b"", long]
    sender.join()
    send(writing, b"12345")
    with pytest.raises(WireError, match="5 bytes is more than the 4"):
        receive(reading, most=4)
    os.close(writing)
    os.read(reading, 5)
    with pytest.raises(EOFError):
        receive(reading)
    os.close(reading)


def test_a_gradient_of_another_shape_or_type_is_refused() -> None:
    spec, store = small("dp1", steps=1), dist.HashStore()
    name = "embedding.token.weight"
    publish(store, name, 0, 0, torch.zeros(3))
    with pytest.raises(
        WireError, match=r"the gradient of embedding\.token\.weight from replica 0, tp 0 is not float32 of \(256, 32\)"
    ):
        compare(spec, store)
