"""A reader of tables in Parquet files. It first checks the file's metadata: columns, types and sizes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, BinaryIO, NamedTuple

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import ArrowException
from pyarrow import parquet as pq

from engine.spec import RequestError, Sentence, sentence
from engine.tables import SCHEMAS, TABLES


class ReadLimits(NamedTuple):
    """The limits for one run: rows of a table, and bytes of all its tables in memory.

    `foreign`: the files may come from another program, so their compression and encodings are checked too. A damaged file can
    crash the library at this check. So such files must be read in a process of their own.
    """

    rows: int
    bytes: int
    foreign: bool


# The compression and encodings that this program writes. Others are refused: with them a data page can expand a thousandfold, and
# with delta encoding of strings a text can have any length.
_CODECS = {"SNAPPY", "UNCOMPRESSED"}
_ENCODINGS = {"PLAIN", "RLE", "RLE_DICTIONARY", "PLAIN_DICTIONARY", "BIT_PACKED"}
_ARROW = {"str": pa.large_string(), "int64": pa.int64(), "float64": pa.float64()}
_MOST_GROUPS = 64  # row groups; pandas begins a new one after a million rows
_NUMBER_BYTES = 8  # of a number, and of the offset of a text


def read_table(name: str, file: BinaryIO, bounds: ReadLimits) -> pd.DataFrame:
    """The table `name` in the Parquet `file`, with exactly the columns and types of its schema. Raises `RequestError`.

    A column that only an older run may lack is filled.
    """
    called, absent = f"{name}.parquet", {column: rule.absent for column, rule in TABLES[name].columns.items()}
    try:
        texts = [column for column, dtype in SCHEMAS[name].items() if dtype == "str"]
        # Texts are read as dictionaries: one that a million rows share is not copied before the size of all rows is known.
        parquet = pq.ParquetFile(file, read_dictionary=texts, pre_buffer=False)
        there = parquet.schema_arrow.names
        schema = {column: dtype for column, dtype in SCHEMAS[name].items() if column in there or absent[column] is None}
        _refuse_first(_misfits(called, parquet.metadata, parquet.schema_arrow, schema, bounds))
        # In this thread only: with threads, each would keep the memory that reading used for a moment.
        found = parquet.read(use_threads=False).select(list(schema))
        found.validate(full=True)  # also checks that texts are valid UTF-8
        _refuse_first(_too_much(called, found, bounds))
        wanted = pa.schema([(column, _ARROW[dtype]) for column, dtype in schema.items()])
        rows = found.cast(wanted).to_pandas(use_threads=False, ignore_metadata=True)
        if rows.empty:  # pandas cannot join columns that Arrow has made of nothing
            rows = pd.DataFrame({column: pd.Series([], dtype=dtype) for column, dtype in schema.items()})
        for at, column in enumerate(SCHEMAS[name]):
            if column not in schema:
                rows.insert(at, column, absent[column])
        return rows
    except MemoryError:
        raise
    except (ArrowException, OSError, ValueError, KeyError) as error:
        reason = next(iter(str(error).splitlines()), "")
        raise RequestError(sentence("{name} is not a table: {error}", name=called, error=reason)) from error


def bytes_of(rows: pd.DataFrame) -> int:
    """The bytes of a table in memory."""
    return int(rows.memory_usage(index=False, deep=True).sum())


def _refuse_first(found: Iterator[Sentence]) -> None:
    if wrong := next(found, None):
        raise RequestError(wrong)


def _misfits(name: str, metadata: Any, columns: Any, schema: dict[str, str], bounds: ReadLimits) -> Iterator[Sentence]:
    """Errors in the metadata of a file: what a table of this schema cannot have."""
    if metadata.num_rows > bounds.rows:
        yield sentence(
            "{name} has {rows:,} rows; at most {most:,} are accepted", name=name, rows=metadata.num_rows, most=bounds.rows
        )
    if metadata.num_row_groups > _MOST_GROUPS:
        yield sentence(
            "{name} has {rows:,} groups of rows; at most {most:,} are accepted",
            name=name, rows=metadata.num_row_groups, most=_MOST_GROUPS,
        )  # fmt: skip
    if missing := [column for column in schema if column not in columns.names]:
        yield sentence("{name} lacks {missing}", name=name, missing=", ".join(missing))
    if metadata.num_columns > len(schema):
        more = next((column for column in columns.names if column not in schema), "")[:60]
        yield sentence("{name} has an unknown column {column!r}", name=name, column=more)
    for column, dtype in schema.items():
        found = columns.field(column).type
        if not _has_type(found, dtype):
            yield sentence(
                "{name} has {found} in {column}; it must be {dtype}",
                name=name,
                found=str(found)[:60],
                column=column,
                dtype=dtype,
            )
    groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
    if (whole := sum(group.total_byte_size for group in groups)) > bounds.bytes:
        yield _larger(whole, bounds)
    for part in (group.column(i) for group in groups for i in range(metadata.num_columns) if bounds.foreign):
        if part.compression not in _CODECS or not _ENCODINGS.issuperset(part.encodings):
            yield sentence(
                "{name} has an encoding that is not accepted: {way}; write it with the defaults of pandas",
                name=name, way=", ".join([part.compression, *part.encodings]),
            )  # fmt: skip
        if part.total_uncompressed_size > bounds.bytes:
            yield _larger(part.total_uncompressed_size, bounds)


def _has_type(found: pa.DataType, dtype: str) -> bool:
    if dtype != "str":
        return found == _ARROW[dtype]
    return pa.types.is_dictionary(found) and (pa.types.is_string(found.value_type) or pa.types.is_large_string(found.value_type))


def _too_much(name: str, found: pa.Table, bounds: ReadLimits) -> Iterator[Sentence]:
    """Errors that only the rows show: missing values, and too many bytes in total."""
    whole = found.num_rows * found.num_columns * _NUMBER_BYTES
    for column in found.column_names:
        chunks = [c for c in found[column].chunks if isinstance(c, pa.DictionaryArray)]
        whole += sum(pc.sum(pc.binary_length(c.dictionary).take(c.indices)).as_py() or 0 for c in chunks)
    if whole > bounds.bytes:
        yield _larger(whole, bounds)
    for column in found.column_names:
        if found[column].null_count and not pa.types.is_floating(found[column].type):
            yield sentence("{name} has an empty value in {column}", name=name, column=column)


def _larger(whole: int, bounds: ReadLimits) -> Sentence:
    return sentence("it holds {bytes:,} bytes; at most {most:,} are accepted", bytes=whole, most=bounds.bytes)
