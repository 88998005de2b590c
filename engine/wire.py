"""Messages between processes of this program, as bytes: JSON, Arrow IPC for tables, and raw bytes.

A message has a head, which is JSON, and named parts. Reading a message never executes its content. Each reader checks what it
expects, and raises `WireError` with one sentence for anything else. Imports no torch.

    8 bytes   length of the head, little-endian
    head      {"head": …, "parts": [[name, bytes], …]}
    parts     one after the other
"""

from __future__ import annotations

import json
import os
import struct
import time
from collections.abc import Mapping
from select import select
from typing import Any

import pyarrow as pa

from engine.tables import SCHEMAS, Rows

Parts = Mapping[str, bytes | memoryview]

LARGEST = 4 << 30  # bytes of a message
_MOST_HEAD = 16 << 20
_LENGTH = struct.Struct("<Q")
_AT_ONCE = 1 << 20
_ARROW = {"str": pa.string(), "int64": pa.int64(), "float64": pa.float64()}
# A rank sends this table too: the totals of its allocator.
_ALLOCATOR = dict.fromkeys(("rank", "start_bytes", "peak_bytes", "workspace_bytes", "unaccounted_bytes"), "int64")


class WireError(Exception):
    """A message from another process is not valid."""


# -------------------------------------------------------------------------------------------------------------- messages


def pack(head: Any, parts: Parts | None = None) -> bytes:
    """A message. `head`: a JSON value. NaN is kept, and a tuple becomes a list."""
    parts = parts or {}
    written = json.dumps({"head": head, "parts": [[name, len(part)] for name, part in parts.items()]}).encode()
    return b"".join((_LENGTH.pack(len(written)), written, *parts.values()))


def unpack(message: bytes, *, finite: bool = False) -> tuple[Any, dict[str, memoryview]]:
    """Head and parts of a message. Raises `WireError`; if `finite`, also if the head has NaN or Infinity."""
    view = memoryview(message)
    if len(view) < _LENGTH.size:
        raise WireError(f"a message of {len(view)} bytes is too short to be one")
    (length,) = _LENGTH.unpack_from(view)
    if length > min(_MOST_HEAD, len(view) - _LENGTH.size):
        raise WireError(f"a message of {len(view):,} bytes cannot have a head of {length:,}")
    start = _LENGTH.size + length
    try:
        read = json.loads(bytes(view[_LENGTH.size : start]), parse_constant=_no_number if finite else None)
        head, listed = read["head"], [(str(name), whole(size)) for name, size in read["parts"]]
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise WireError(f"the head of a message cannot be read: {error}") from error
    sizes = [size for _, size in listed]
    if min(sizes, default=0) < 0 or sum(sizes) != len(view) - start or len({name for name, _ in listed}) < len(listed):
        raise WireError(f"the parts of a message do not add up to its {len(view):,} bytes")
    parts = {}
    for name, size in listed:
        parts[name], start = view[start : start + size], start + size
    return head, parts


def whole(number: Any) -> int:
    """The value, if it is a whole number. Raises `TypeError` for all others, also for "12", true and 1.9, which `int` accepts."""
    if type(number) is not int:
        raise TypeError(f"{str(number)[:40]!r} is no whole number")
    return number


def _no_number(name: str) -> Any:
    raise ValueError(f"{name} is no number here")


def send(fd: int, message: bytes, deadline: float | None = None) -> None:
    """Write a message to a pipe or socket, with its length before it. Raises `OSError` if there is no reader.

    `deadline`: in seconds of `time.monotonic`, for a descriptor that does not block. Raises `TimeoutError` if not all is written
    by then.
    """
    _write_all(fd, _LENGTH.pack(len(message)), deadline)
    _write_all(fd, message, deadline)


def receive(fd: int, most: int = LARGEST, deadline: float | None = None) -> bytes:
    """Read a message that `send` wrote. Blocks until it has arrived. Raises `EOFError` if the other end is closed, and
    `WireError`.

    `deadline`: as in `send`. Raises `TimeoutError` if not all has arrived by then.
    """
    (length,) = _LENGTH.unpack(_read_exactly(fd, _LENGTH.size, deadline))
    if length > most:
        raise WireError(f"a message of {length:,} bytes is more than the {most:,} that are taken")
    return _read_exactly(fd, length, deadline)


def _write_all(fd: int, message: bytes, deadline: float | None) -> None:
    left = memoryview(message)
    while left:
        if deadline is not None and not select([], [fd], [], max(0.0, deadline - time.monotonic()))[1]:
            raise TimeoutError
        left = left[os.write(fd, left) :]


def _read_exactly(fd: int, count: int, deadline: float | None) -> bytes:
    found = bytearray()
    while len(found) < count:
        if deadline is not None and not select([fd], [], [], max(0.0, deadline - time.monotonic()))[0]:
            raise TimeoutError
        data = os.read(fd, min(count - len(found), _AT_ONCE))
        if not data:
            raise EOFError
        found += data
    return bytes(found)


# ---------------------------------------------------------------------------------------------------------------- tables


def arrow(table: pa.Table) -> bytes:
    """A table in the Arrow IPC stream format."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


def arrow_read(stream: bytes | memoryview) -> pa.Table:
    """The table in an Arrow IPC stream. It is fully validated. Raises `WireError`."""
    try:
        with pa.ipc.open_stream(pa.py_buffer(stream)) as reader:
            table = reader.read_all()
        table.validate(full=True)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise WireError(f"a table cannot be read: {error}") from error
    return table


def pack_rows(rows: Rows) -> bytes:
    """A message with rows, by table: those of `engine.tables` without the column "source", and "allocator"."""
    return pack(None, {name: arrow(pa.Table.from_pylist(part, _schema(name))) for name, part in rows.items()})


def unpack_rows(message: bytes, rank: int | None = None) -> Rows:
    """The rows in a message of `pack_rows`, checked against the schemas. `rank`: if given, all rows must be of it. Raises
    `WireError`.
    """
    head, parts = unpack(message, finite=True)
    if head is not None:
        raise WireError("a message of rows has nothing in its head")
    rows = {}
    for name, stream in parts.items():
        if name != "allocator" and name not in SCHEMAS:
            raise WireError(f"there is no table {name[:40]!r}")
        table = arrow_read(stream)
        if not table.schema.equals(_schema(name)):
            columns = ", ".join(f"{field.name} {field.type}" for field in _schema(name))
            raise WireError(f"the table {name} has the columns {columns}, and no others")
        if any(column.null_count for column in table.columns):
            raise WireError(f"the table {name} has an empty cell")
        rows[name] = table.to_pylist()
        if rank is not None and any(row.get("rank", rank) != rank for row in rows[name]):
            raise WireError(f"the table {name} has rows of another rank")
    return rows


def _schema(name: str) -> pa.Schema:
    columns = _ALLOCATOR if name == "allocator" else SCHEMAS[name]
    return pa.schema([(column, _ARROW[kind]) for column, kind in columns.items() if column != "source"])
