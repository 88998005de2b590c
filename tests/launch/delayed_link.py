"""A link between two networks that delays each frame, for kernels without `netem`: it has a TAP device in each network.

    python -m tests.launch.delayed_link DELAY_MS PID DEVICE PID DEVICE

PID: a process in the network; DEVICE: the name of the device that is made there. It prints a line when both are made, and runs
until it is killed. It needs root and /dev/net/tun.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import select
import struct
import sys
import time
from collections import deque

TUN = "/dev/net/tun"
_MAKE_DEVICE, _TAP, _BARE_FRAMES = 0x400454CA, 0x0002, 0x1000  # of <linux/if_tun.h>
_NETWORK = 0x40000000  # of <sched.h>
_LONGEST = 1 << 16


def enter(pid: int) -> None:
    """Enter the network of a process."""
    with open(f"/proc/{pid}/ns/net", "rb") as network:
        if ctypes.CDLL(None, use_errno=True).setns(network.fileno(), _NETWORK):
            raise OSError(ctypes.get_errno(), "cannot enter the network")


def made(pid: int, name: str) -> int:
    """A TAP device in the network of a process. Returns its file: reading it takes a frame that was sent over the device."""
    enter(pid)
    file = os.open(TUN, os.O_RDWR)
    fcntl.ioctl(file, _MAKE_DEVICE, struct.pack("16sH22x", name.encode(), _TAP | _BARE_FRAMES))
    return file


def join(ends: tuple[int, int], delay_s: float) -> None:
    """Hand each frame of one end to the other, `delay_s` later."""
    on_the_way = deque[tuple[float, int, bytes]]()  # when it arrives, where, the frame
    while True:
        wait = max(0.0, on_the_way[0][0] - time.monotonic()) if on_the_way else None
        for end in select.select(ends, [], [], wait)[0]:
            frame = os.read(end, _LONGEST)
            on_the_way.append((time.monotonic() + delay_s, ends[end == ends[0]], frame))
        while on_the_way and on_the_way[0][0] <= time.monotonic():
            _, end, frame = on_the_way.popleft()
            try:
                os.write(end, frame)
            except OSError as error:
                if error.errno != errno.EIO:  # the device is down: the frame is lost, as on a cable that is pulled
                    raise


def main() -> None:
    delay, *ends = sys.argv[1:]
    one, other = (made(int(pid), name) for pid, name in zip(ends[::2], ends[1::2], strict=True))
    enter(os.getppid())  # tests count the processes in the two networks
    print("made", flush=True)
    join((one, other), float(delay) / 1e3)


if __name__ == "__main__":
    main()
