"""run.json, the head of a saved run: its spec, its environment, and its summary.

It also has the schema version of the whole run. An older run is upgraded when it is read. A newer one is refused.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Annotated, Any

from pydantic import ConfigDict, Field

from engine.spec import LARGEST_JSON, WHOLE_LOSS, RequestError, RunSpec, Spec, parsed, sentence
from engine.tables import RunResult

_PARTS = ("spec", "environment", "summary")
_VERSION = "schema_version"
Head = dict[str, Any]  # the JSON object in run.json

_Count = Annotated[int, Field(ge=0, le=2**53)]
_Number = Annotated[float, Field(ge=-(2.0**62), le=2.0**62)]
_FiniteOrNull = _Number | None  # a number that was not finite, such as a diverged loss, is null


class _JsonRecord(Spec):
    """A JSON object whose values are not converted. Unknown fields, of an older or a newer program, are kept."""

    model_config = ConfigDict(extra="allow", strict=True)


class Environment(_JsonRecord):
    """Where a run ran."""

    backend: str = Field(min_length=1)
    why: str
    cores: int = Field(ge=1, le=2**20)
    device: str = ""
    torch: str = ""
    python: str = ""
    system: str = ""
    threads_per_rank: int = Field(1, ge=1, le=2**20)
    nodes: list[_Count] = Field(default_factory=list)  # the node of each rank; empty for one node
    clock_error_ns: _Count = 0  # bound of the error between instants of any two nodes


class Allocator(_JsonRecord):
    """The totals of one rank's allocator. Unknown fields must be whole numbers too."""

    __pydantic_extra__: dict[str, int]

    rank: _Count
    start_bytes: _Count
    peak_bytes: _Count
    unaccounted_bytes: int = Field(0, ge=-(2**53), le=2**53)


class Generated(_JsonRecord):
    """A generated text: the prompt, the new tokens, and their text."""

    prompt: str
    tokens: list[_Count]
    text: str


class Summary(_JsonRecord):
    """The few numbers that a list of runs shows, and those that are in no table. A dry run has no speed and no losses."""

    steps: int = Field(ge=1, le=2**31)
    step_ns: int = Field(ge=1, le=2**53)
    peak_bytes: _Count
    peak_rank: _Count
    wire_bytes_per_rank: float = Field(ge=0, le=2.0**62)
    wire_bytes_between_nodes: _Count = 0  # of all ranks in a step, if there were several nodes; see `engine.summary`
    bubble: float = Field(ge=-1e-6, le=1)  # rounding errors may leave it slightly below 0
    tokens_per_second: float = Field(0.0, ge=0, le=2.0**62)
    loss_first: _FiniteOrNull = None
    loss_last: _FiniteOrNull = None
    parity_max_rel: Annotated[float, Field(ge=0, le=2.0**62)] | None = None
    loss_max_abs: _FiniteOrNull = None
    reference_losses: list[_FiniteOrNull] = Field(default_factory=list)
    allocator: list[Allocator] = Field(default_factory=list)
    generated: Generated | None = None
    rehearsed: list[_Count] = Field(default_factory=list)
    seconds: float = Field(0.0, ge=0, le=2.0**62)
    grown_bytes: int = Field(0, ge=-(2**53), le=2**53)


def _with_version(head: Head) -> Head:
    """A run without a version is the same as one of version 1."""
    return head | {_VERSION: 1}


def _with_written_attention(head: Head) -> Head:
    """Until version 1 attention was always written, and the loss was always computed as a whole."""
    spec = head.get("spec")
    if not isinstance(spec, dict) or not isinstance(spec.get("workload", {}), dict):
        return head  # no run; reading it says so
    return head | {
        _VERSION: 2,
        "spec": spec | {"workload": {"attention": "written", "loss_chunk": WHOLE_LOSS} | spec.get("workload", {})},
    }


# Entry n upgrades a head of version n to version n + 1. A new version is needed if an older program would misread a run: if a
# field has another name or meaning, or a table changed. For a column that older tables lack, see `ColumnSchema.absent`.
_UPGRADES: tuple[Callable[[Head], Head], ...] = (_with_version, _with_written_attention)
SCHEMA_VERSION = len(_UPGRADES)  # of runs that this program saves


class NewerRunError(RequestError):
    """The run has a schema version that only a newer program knows."""


def read_head(content: bytes) -> RunResult:
    """Read run.json: a result without tables. Raises `RequestError`, and `NewerRunError` for a newer schema version."""
    read = parsed(content, "run.json")
    if isinstance(read, dict):
        read = _upgraded(read)
    if not isinstance(read, dict) or not all(isinstance(read.get(part), dict) for part in _PARTS):
        raise RequestError(sentence("run.json must have all of {parts}", parts=", ".join(_PARTS)))
    spec = RunSpec.model_validate(read["spec"])
    Environment.model_validate(read["environment"])
    Summary.model_validate(read["summary"])
    return RunResult(spec, read["environment"], _map_leaves(read["summary"], _number))


def _upgraded(head: Head) -> Head:
    version = head.get(_VERSION, 0)
    if type(version) is not int or version < 0:
        raise RequestError(sentence("run.json has a {field} that is not a whole number of at least 0", field=_VERSION))
    if version > SCHEMA_VERSION:
        raise NewerRunError(
            sentence(
                "it was saved by a newer version of this program (schema version {version}; this program reads up to {most})",
                version=version,
                most=SCHEMA_VERSION,
            )
        )
    for upgrade in _UPGRADES[version:]:
        head = upgrade(head)
    return head


def written_head(result: RunResult) -> str:
    """The text of run.json. JSON has no NaN: a number in the summary that is not finite is null, and is read as NaN."""
    spec = result.spec.model_dump(mode="json")
    head: Head = {_VERSION: SCHEMA_VERSION, "spec": spec, "environment": result.environment, "summary": finite(result.summary)}
    for_people = json.dumps(head, indent=2, allow_nan=False) + "\n"
    if len(for_people) <= LARGEST_JSON:
        return for_people
    return json.dumps(head, separators=(",", ":"), ensure_ascii=False, allow_nan=False) + "\n"


def finite(value: Any) -> Any:
    """The same JSON value, with None for every number that is not finite."""
    return _map_leaves(value, lambda leaf: None if isinstance(leaf, float) and not math.isfinite(leaf) else leaf)


def _number(leaf: Any) -> Any:
    return math.nan if leaf is None else leaf


def _map_leaves(value: Any, change: Callable[[Any], Any]) -> Any:
    if isinstance(value, dict):
        return {name: _map_leaves(inner, change) for name, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_map_leaves(inner, change) for inner in value]
    return change(value)
