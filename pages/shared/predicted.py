"""What the formulas say of a spec, made once for all pages and sessions."""

from __future__ import annotations

from engine.predict.memory import Memory, memory
from engine.predict.run import predict
from engine.spec import LayoutSpec, RunSpec
from engine.tables import RunResult
from pages.shared.kept import kept_by_size

_KEPT_BYTES = 24 << 20  # of tables


def listed(layout: LayoutSpec) -> int:
    """How many ranks have rows in tables: what a sum over these is divided by for the mean of all."""
    return len(layout.mesh.listed)


def _bytes_of(result: RunResult) -> int:
    return sum(int(table.memory_usage(deep=True).sum()) for table in result.tables.values())


@kept_by_size(_KEPT_BYTES, _bytes_of)
def predicted(spec: RunSpec) -> RunResult:
    """Without a table of spans, which no page needs. Raises `RequestError` as `predict` does."""
    return predict(spec, peaks(spec), spans=False)


def _peaks_of(found: Memory) -> int:
    return len(found.peaks) + len(found.others)


@kept_by_size(2_048, _peaks_of)
def peaks(spec: RunSpec) -> Memory:
    """With their terms, which the tables do not have. Raises `RequestError` as `memory` does."""
    return memory(spec)
