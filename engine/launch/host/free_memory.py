"""How much memory processes of this machine can still take. Imports no torch."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import psutil

_GROUPS = Path("/sys/fs/cgroup")
_SHARE, _LEAST, _MOST = 20, 256 << 20, 1 << 30  # a twentieth of the memory is kept free, within these bounds


class Group(NamedTuple):
    """A control group's memory, in bytes."""

    limit: int
    left: int


def free_memory() -> int:
    """Bytes that can be allocated before the kernel ends a process: of the machine, or of the container if that has less left.

    A container is seen by its limit in control groups of version 2. Those of version 1 are not read.
    """
    return min([psutil.virtual_memory().available, *(group.left for group in _groups())])


def usual_reserve() -> int:
    """Bytes that runs leave free: new ones do not get them, and `engine.launch.host.guard` ends runs that take them."""
    whole = min([psutil.virtual_memory().total, *(group.limit for group in _groups())])
    return min(max(whole // _SHARE, _LEAST), _MOST)


def memory_for_runs() -> int:
    """Bytes that a new run may take."""
    return max(0, free_memory() - usual_reserve())


def _groups() -> list[Group]:
    """This process's control group and those above it, as far as they have a limit."""
    try:
        lines = Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux, or hidden from this user
        return []
    unified = next((line.removeprefix("0::") for line in lines if line.startswith("0::")), None)
    if unified is None:
        return []
    folder = _GROUPS / unified.lstrip("/")
    return [found for path in (folder, *folder.parents) if path.is_relative_to(_GROUPS) and (found := read_group(path))]


def read_group(folder: Path) -> Group | None:
    """None if it has no limit that can be read. Files' pages count as left: the kernel drops them before it ends a process."""
    try:
        limit = int((folder / "memory.max").read_text(encoding="ascii"))
        used = int((folder / "memory.current").read_text(encoding="ascii"))
        kinds = dict(line.split() for line in (folder / "memory.stat").read_text(encoding="ascii").splitlines())
        of_files = sum(int(kinds.get(kind, 0)) for kind in ("inactive_file", "active_file"))
    except (OSError, ValueError):  # the root has no limit, the limit may be "max", and in a container a group above is not seen
        return None
    return Group(limit, max(0, limit - used + of_files))
