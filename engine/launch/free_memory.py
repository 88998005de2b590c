"""How much memory processes of this machine can still take. Imports no torch."""

from __future__ import annotations

from pathlib import Path

import psutil

_GROUPS = Path("/sys/fs/cgroup")


def free_memory() -> int:
    """Bytes that can be allocated before the kernel ends a process: of the machine, or of the container if that has less left."""
    return min([psutil.virtual_memory().available, *_left_in_groups()])


def _left_in_groups() -> list[int]:
    """What is left under the limit of this process's control group and of those above it. Empty where there is no limit."""
    try:
        lines = Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:  # not Linux
        return []
    unified = next((line.removeprefix("0::") for line in lines if line.startswith("0::")), None)
    if unified is None:
        return []
    folder = _GROUPS / unified.lstrip("/")
    return [left for group in (folder, *folder.parents) if group.is_relative_to(_GROUPS) and (left := _left(group)) is not None]


def _left(group: Path) -> int | None:
    """Files' pages count as free: the kernel drops them before it ends a process."""
    try:
        limit = (group / "memory.max").read_text(encoding="ascii").strip()
        used = int((group / "memory.current").read_text(encoding="ascii"))
        kinds = (group / "memory.stat").read_text(encoding="ascii").splitlines()
    except FileNotFoundError:  # the root has no limit; in a container a group above it is not seen
        return None
    if limit == "max":
        return None
    of_files = sum(int(size) for kind, size in (line.split() for line in kinds) if kind in ("inactive_file", "active_file"))
    return max(0, int(limit) - used + of_files)
