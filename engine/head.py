"""What run.json says of a run: the spec, where it ran, and the few numbers that sum it up.

It also has the schema version of the whole run. An older run is brought to today's version when it is read; a newer one is
refused.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Annotated, Any

from pydantic import ConfigDict, Field

from engine.spec import LARGEST_JSON, RequestError, RunSpec, Spec, parsed, sentence
from engine.tables import RunResult

_PARTS = ("spec", "environment", "summary")
_VERSION = "schema_version"
Head = dict[str, Any]  # what run.json holds, as JSON has it

_Count = Annotated[int, Field(ge=0, le=2**53)]
_Number = Annotated[float, Field(ge=-(2.0**62), le=2.0**62)]
_Lost = _Number | None  # a number that was not finite in a run that blew up is null


class _Said(Spec):
    """Values as JSON has them, none turned into another. What an older or a newer program says besides is kept."""

    model_config = ConfigDict(extra="allow", strict=True)


class Environment(_Said):
    """Where it ran."""

    backend: str = Field(min_length=1)
    why: str
    cores: int = Field(ge=1, le=2**20)
    device: str = ""
    torch: str = ""
    python: str = ""
    system: str = ""
    threads_per_rank: int = Field(1, ge=1, le=2**20)


class Allocator(_Said):
    """What one rank's allocator said of itself. Whatever else it says is whole numbers too."""

    __pydantic_extra__: dict[str, int]

    rank: _Count
    start_bytes: _Count
    peak_bytes: _Count
    unaccounted_bytes: int = Field(0, ge=-(2**53), le=2**53)


class Generated(_Said):
    """A text that was continued."""

    prompt: str
    tokens: list[_Count]
    text: str


class Summary(_Said):
    """The few numbers that a list of runs shows, and what only the launcher knew. A dry run has no speed and no losses."""

    steps: int = Field(ge=1, le=2**31)
    step_ns: int = Field(ge=1, le=2**53)
    peak_bytes: _Count
    peak_rank: _Count
    wire_bytes_per_rank: float = Field(ge=0, le=2.0**62)
    bubble: float = Field(ge=-1e-6, le=1)  # a sum of fractions may end a hair below none
    tokens_per_second: float = Field(0.0, ge=0, le=2.0**62)
    loss_first: _Lost = None
    loss_last: _Lost = None
    parity_max_rel: Annotated[float, Field(ge=0, le=2.0**62)] | None = None
    loss_max_abs: _Lost = None
    reference_losses: list[_Lost] = Field(default_factory=list)
    allocator: list[Allocator] = Field(default_factory=list)
    generated: Generated | None = None
    rehearsed: list[_Count] = Field(default_factory=list)
    seconds: float = Field(0.0, ge=0, le=2.0**62)
    grown_bytes: int = Field(0, ge=-(2**53), le=2**53)


def _numbered(head: Head) -> Head:
    """Before runs had a version, they were the same without it."""
    return head | {_VERSION: 1}


# The n-th makes a head of version n + 1 of a head of version n. A run gets a new version when an older program would misread it:
# a field that is named or meant otherwise, a table that changed. A column that older tables lack: `Column.absent`.
_UPGRADES: tuple[Callable[[Head], Head], ...] = (_numbered,)
SCHEMA_VERSION = len(_UPGRADES)  # of the runs that are saved today


class NewerRunError(RequestError):
    """The run is one, but of a schema version that only a newer program knows."""


def read_head(content: bytes) -> RunResult:
    """What run.json holds: a result without its tables. Raises `RequestError`, and `NewerRunError` for a version yet to come."""
    read = parsed(content, "run.json")
    if isinstance(read, dict):
        read = _upgraded(read)
    if not isinstance(read, dict) or not all(isinstance(read.get(part), dict) for part in _PARTS):
        raise RequestError(sentence("run.json has not all of {parts}", parts=", ".join(_PARTS)))
    spec = RunSpec.model_validate(read["spec"])
    Environment.model_validate(read["environment"])
    Summary.model_validate(read["summary"])
    return RunResult(spec, read["environment"], _map_leaves(read["summary"], _number))


def _upgraded(head: Head) -> Head:
    version = head.get(_VERSION, 0)
    if type(version) is not int or version < 0:
        raise RequestError(sentence("run.json has a {field} that is no whole number from 0 on", field=_VERSION))
    if version > SCHEMA_VERSION:
        raise NewerRunError(
            sentence(
                "a newer version of this program saved it (schema version {version}; this program reads up to {most})",
                version=version,
                most=SCHEMA_VERSION,
            )
        )
    for upgrade in _UPGRADES[version:]:
        head = upgrade(head)
    return head


def written_head(result: RunResult) -> str:
    """The same, written. JSON knows no NaN: a number in the summary that is not finite is null, and NaN again when read."""
    spec = result.spec.model_dump(mode="json")
    head: Head = {_VERSION: SCHEMA_VERSION, "spec": spec, "environment": result.environment, "summary": finite(result.summary)}
    for_people = json.dumps(head, indent=2, allow_nan=False) + "\n"
    if len(for_people) <= LARGEST_JSON:
        return for_people
    return json.dumps(head, separators=(",", ":"), ensure_ascii=False, allow_nan=False) + "\n"


def finite(value: Any) -> Any:
    """The same JSON value with None for every number that JSON has no way to write."""
    return _map_leaves(value, lambda leaf: None if isinstance(leaf, float) and not math.isfinite(leaf) else leaf)


def _number(leaf: Any) -> Any:
    return math.nan if leaf is None else leaf


def _map_leaves(value: Any, change: Callable[[Any], Any]) -> Any:
    if isinstance(value, dict):
        return {name: _map_leaves(inner, change) for name, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_map_leaves(inner, change) for inner in value]
    return change(value)
