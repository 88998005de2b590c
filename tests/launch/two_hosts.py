"""Two hosts on one machine: each has a network, a clock, a name and a view of folders of its own. A link with limits joins them.

Linux namespaces make them, so it needs root. What a kernel lacks is told by `missing`, or is left out and told by `link`.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.launch.delayed_link import TUN
from tests.patience import PATIENCE_S

ADDRESSES = ("10.77.0.1", "10.77.0.2")
AHEAD_S = (1_000, 5_000)  # of each host's monotonic clock, before the machine's
RATE, DELAY_MS = "200mbit", 2
_ENTERED = ("--net", "--uts", "--mount", "--time")
_KINDS = ("--net", "--uts", "--mount", "--fork", "--kill-child")


def missing() -> str:
    """Why two hosts cannot be made here. Empty if they can."""
    if sys.platform != "linux":
        return "network namespaces are Linux's"
    if os.geteuid():
        return "making networks needs root"
    if lacking := [name for name in ("unshare", "nsenter", "ip", "tc") if shutil.which(name) is None]:
        return f"there is no {' and no '.join(lacking)}"
    tried = ["unshare", *_KINDS, "--time", "--monotonic", "1", "ip", "link", "add", "one", "type", "veth", "peer", "two"]
    done = subprocess.run(tried, capture_output=True, text=True, check=False)
    return f"the system refuses it: {done.stderr.strip()}" if done.returncode else ""


@dataclass(frozen=True)
class Host:
    name: str
    pid: int  # of the process that holds its namespaces, a child of `holder`
    holder: int
    address: str
    device: str  # its network interface to the other host

    def command(self, *command: str, folder: Path | None = None) -> list[str]:
        """`command`, to be run on this host, in `folder` or in the folder of this process."""
        return ["nsenter", "--target", str(self.pid), *_ENTERED, f"--wdns={folder or Path.cwd()}", *command]

    def do(self, *command: str) -> str:
        """Run a command there. Returns what it prints."""
        return subprocess.run(self.command(*command), capture_output=True, text=True, check=True).stdout

    def processes(self) -> list[int]:
        """All processes in its network, but those that hold it."""
        network, found = os.stat(f"/proc/{self.pid}/ns/net").st_ino, []
        for path in Path("/proc").glob("[0-9]*"):
            try:
                if (path / "ns" / "net").stat().st_ino == network and int(path.name) not in (self.pid, self.holder):
                    found.append(int(path.name))
            except OSError:  # it has ended
                continue
        return found


class TwoHosts:
    """Two hosts and the link between them, until the block ends."""

    apart_s = AHEAD_S[1] - AHEAD_S[0]  # between their clocks

    def __enter__(self) -> Self:
        with ExitStack() as made:  # what is made is undone if the rest fails
            self._make(made)
            self._made = made.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._made.close()

    def _make(self, made: ExitStack) -> None:
        self.hosts = []
        for name, other, ahead, address in zip("ab", "ba", AHEAD_S, ADDRESSES, strict=True):
            holder = _holder(ahead)
            made.callback(holder.wait)
            made.callback(holder.kill)
            self.hosts.append(Host(f"host-{name}", _held_by(holder), holder.pid, address, f"to-{other}"))
            made.callback(_kill_all, self.hosts[-1])
        delayed = _has_netem()
        if not delayed and os.access(TUN, os.W_OK):
            link = self._delayed_link()
            made.callback(link.wait)
            made.callback(link.kill)
        else:
            a, b = self.hosts
            a.do("ip", "link", "add", a.device, "type", "veth", "peer", "name", b.device, "netns", str(b.pid))
        for host in self.hosts:
            host.do("hostname", host.name)
            host.do("ip", "link", "set", "lo", "up")
            host.do("ip", "address", "add", f"{host.address}/24", "dev", host.device)
            host.do("ip", "link", "set", host.device, "up")
            limits = ("root", "handle", "1:", "tbf", "rate", RATE, "burst", "64kb", "latency", "200ms")
            host.do("tc", "qdisc", "add", "dev", host.device, *limits)
            if delayed:
                host.do("tc", "qdisc", "add", "dev", host.device, "parent", "1:1", "netem", "delay", f"{DELAY_MS}ms")
        has_delay = delayed or os.access(TUN, os.W_OK)
        self.link = f"{RATE}/s, {f'{DELAY_MS} ms each way' if has_delay else 'no delay: neither netem nor TAP devices here'}"

    def _delayed_link(self) -> subprocess.Popen[str]:
        """A process that is the link. It has made both devices."""
        ends = [text for host in self.hosts for text in (str(host.pid), host.device)]
        command = [sys.executable, "-m", "tests.launch.delayed_link", str(DELAY_MS), *ends]
        link = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert link.stdout
        assert link.stdout.readline() == "made\n"
        return link

    def cut(self) -> None:
        """Pull the cable: nothing arrives any more, and nobody is told."""
        a, _ = self.hosts
        a.do("ip", "link", "set", a.device, "down")


def _has_netem() -> bool:
    """Whether the kernel can delay what a device sends."""
    tried = ["unshare", "--net", "tc", "qdisc", "add", "dev", "lo", "root", "netem", "delay", "1ms"]
    return not subprocess.run(tried, capture_output=True, check=False).returncode


def _kill_all(host: Host) -> None:
    """Kill the processes on a host that a test left there."""
    for pid in host.processes():
        with suppress(ProcessLookupError):  # it has ended since
            os.kill(pid, signal.SIGKILL)


def _holder(ahead: int) -> subprocess.Popen[bytes]:
    command = ["unshare", *_KINDS, "--time", "--monotonic", str(ahead), "sleep", "infinity"]
    return subprocess.Popen(command)


def _held_by(holder: subprocess.Popen[bytes]) -> int:
    """The process that the holder has forked, which is in all of its namespaces."""
    children = Path(f"/proc/{holder.pid}/task/{holder.pid}/children")
    deadline = time.monotonic() + PATIENCE_S
    while not (found := children.read_text().split()) or Path(f"/proc/{found[0]}/comm").read_text() != "sleep\n":
        assert holder.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)  # there is no event to wait for
    return int(found[0])
