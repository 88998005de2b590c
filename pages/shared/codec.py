"""Function calls and answers as messages between processes. Type annotations say what is read; no received code is executed.

It encodes None, numbers, text (a `Sentence` keeps its template and values), bytes, arrays, tables, specs, and tuples, lists,
dicts, named tuples and dataclasses of these. Tables are Arrow IPC, arrays and bytes are raw, everything else is JSON.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from importlib import import_module
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

from engine.spec import RequestError, Spec
from engine.spec.sentence import packed, unpacked
from engine.wire import Parts, WireError, arrow, arrow_read, pack, unpack, whole

_NUMBERS = "biuf"  # kinds of arrays: truth values, whole numbers, real numbers


# ----------------------------------------------------------------------------------------------------------------- calls


def name_of(function: Callable[..., Any]) -> str:
    return f"{function.__module__}.{function.__qualname__}"


def packed_call(function: Callable[..., Any], arguments: tuple[Any, ...], named: dict[str, Any]) -> bytes:
    """The call as bytes. Raises `TypeError` for arguments that the function does not take, or that cannot be encoded."""
    parts: dict[str, bytes] = {}
    given = inspect.signature(function).bind(*arguments, **named).arguments
    return pack({"job": name_of(function), "given": {name: encoded(value, parts) for name, value in given.items()}}, parts)


def read_call(question: bytes, jobs: tuple[str, ...]) -> tuple[Callable[..., Any], dict[str, Any]]:
    """One of `jobs`, and its arguments by name. Raises `WireError` for anything else."""
    head, parts = unpack(question)
    if not isinstance(head, dict) or head.keys() != {"job", "given"} or not isinstance(head["given"], dict):
        raise WireError("a question has a job and what is given to it")
    if head["job"] not in jobs:
        raise WireError(f"there is no job {str(head['job'])[:100]!r}")
    module, _, name = head["job"].rpartition(".")
    function: Callable[..., Any] = getattr(import_module(module), name)
    kinds = get_type_hints(function)
    if unknown := sorted(head["given"].keys() - inspect.signature(function).parameters.keys()):
        raise WireError(f"{head['job']} takes no {', '.join(unknown)}")
    return function, {name: decoded(kinds[name], value, parts) for name, value in head["given"].items()}


def packed_answer(how: str, value: Any, resident_bytes: int) -> bytes:
    parts: dict[str, bytes] = {}
    return pack({"how": how, "value": encoded(value, parts), "resident_bytes": resident_bytes}, parts)


def read_answer(message: bytes, kind: Any) -> tuple[str, Any, int]:
    """(status, value, the process's resident bytes). The value is of `kind` if the status is "done", else a text."""
    head, parts = unpack(message)
    try:
        how, value, resident = head["how"], head["value"], whole(head["resident_bytes"])
    except (TypeError, KeyError) as error:
        raise WireError("an answer tells how it went, what came of it and what memory it took") from error
    return str(how), decoded(kind if how == "done" else str, value, parts), resident


# ---------------------------------------------------------------------------------------------------------------- values


def encoded(value: Any, parts: dict[str, bytes]) -> Any:
    """A value as JSON. Arrays, tables and bytes go into `parts`. Raises `TypeError` for other types."""
    if isinstance(value, str):
        return packed(value)
    if value is None or isinstance(value, (bool, int, float)):
        return value
    if isinstance(value, Spec):
        return value.model_dump(mode="json")
    if isinstance(value, bytes):
        return {"part": _put(value, parts)}
    if isinstance(value, pd.DataFrame):
        return {"part": _put(arrow(pa.Table.from_pandas(value)), parts)}
    if isinstance(value, np.ndarray) and value.dtype.kind in _NUMBERS:
        return {"part": _put(value.tobytes(), parts), "dtype": value.dtype.str, "shape": list(value.shape)}
    if isinstance(value, (tuple, list)):
        return [encoded(item, parts) for item in value]
    if isinstance(value, Mapping):
        return {_key(name): encoded(item, parts) for name, item in value.items()}
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: encoded(getattr(value, field.name), parts) for field in fields(value)}
    raise TypeError(f"a {type(value).__name__} cannot be sent to another process")


def _key(name: Any) -> str:
    """A key must be text: JSON converts other keys to text, and their type is lost."""
    if not isinstance(name, str):
        raise TypeError(f"a key that is a {type(name).__name__} cannot be sent to another process")
    return str(name)


def _put(content: bytes, parts: dict[str, bytes]) -> str:
    name = str(len(parts))
    parts[name] = content
    return name


def decoded(kind: Any, written: Any, parts: Parts) -> Any:
    """The inverse of `encoded`, for a value of the annotated `kind`. Raises `WireError` if it is of another kind."""
    try:
        return _decoded(kind, written, parts)
    except (TypeError, ValueError, KeyError, IndexError, AttributeError, OverflowError, RecursionError, RequestError) as error:
        raise WireError(f"this is no {getattr(kind, '__name__', kind)}: {error}") from error


def _decoded(kind: Any, written: Any, parts: Parts) -> Any:
    origin, inner = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return _one_of(inner, written, parts)
    if origin is Literal:
        if written not in inner:
            raise WireError(f"{written!r} is none of {inner}")
        return written
    if kind in _PLAIN:
        return _plain(kind, written)
    if kind is bytes:
        return bytes(parts[written["part"]])
    if kind is pd.DataFrame:
        return arrow_read(parts[written["part"]]).to_pandas(use_threads=False)
    if kind is np.ndarray or origin in _ARRAYS:
        return _array(written, parts)
    if origin in (list, tuple, dict, Mapping):
        return _collection(origin, inner, written, parts)
    return _record(kind, written, parts)


_PLAIN = (Any, None, NoneType, bool, int, float, str)
_ARRAYS = (np.ndarray, NDArray)  # numpy 2.5 has the second as an alias of its own


def _plain(kind: Any, written: Any) -> Any:
    if kind is Any:
        return _unpacked(written)
    if kind is str:
        written = unpacked(written)
    if kind is float and type(written) is int:
        return float(written)
    wanted = NoneType if kind is None else kind
    if type(written) is not wanted and not (kind is str and isinstance(written, str)):
        raise WireError(f"{str(written)[:60]!r} is no {wanted.__name__}")
    return written


def _unpacked(written: Any) -> Any:
    """JSON with its `Sentence`s restored."""
    if isinstance(written, list):
        return [_unpacked(item) for item in written]
    if isinstance(written, dict):
        if written.keys() == {"template", "values"}:
            return unpacked(written)
        return {name: _unpacked(item) for name, item in written.items()}
    return written


def _one_of(kinds: tuple[Any, ...], written: Any, parts: Parts) -> Any:
    for kind in kinds:
        try:
            return decoded(kind, written, parts)
        except WireError:
            continue
    raise WireError(f"it is none of {', '.join(str(kind) for kind in kinds)}")


def _array(written: Any, parts: Parts) -> Any:
    kind, shape, raw = np.dtype(written["dtype"]), [whole(size) for size in written["shape"]], parts[written["part"]]
    if kind.kind not in _NUMBERS or min(shape, default=0) < 0 or len(raw) != kind.itemsize * math.prod(shape):
        raise WireError(f"{len(raw)} bytes are no array {kind} of shape {shape}")
    return np.frombuffer(bytearray(raw), kind).reshape(shape)


def _collection(kind: Any, inner: tuple[Any, ...], written: Any, parts: Parts) -> Any:
    if not isinstance(written, dict if kind in (dict, Mapping) else list):
        raise WireError(f"{str(written)[:60]!r} is no {kind.__name__}")
    if isinstance(written, dict):
        return {name: decoded(inner[1], item, parts) for name, item in written.items()}
    if kind is list or inner[1:] == (...,):
        return kind(decoded(inner[0], item, parts) for item in written)
    return tuple(decoded(one, item, parts) for one, item in zip(inner, written, strict=True))


def _record(kind: Any, written: Any, parts: Parts) -> Any:
    """A spec, a named tuple or a dataclass."""
    if issubclass(kind, Spec):
        return kind.model_validate(written)
    kinds = get_type_hints(kind)
    if issubclass(kind, tuple):
        return kind(*(decoded(kinds[name], item, parts) for name, item in zip(kind._fields, written, strict=True)))
    return kind(**{field.name: decoded(kinds[field.name], written[field.name], parts) for field in fields(kind)})
