"""A network of its own for the processes of runs: no other process can reach their ports, and they reach nothing else.

gloo listens on TCP ports and takes whoever connects first. Loopback is shared by all users of a machine. In a network namespace
it belongs to the processes in it. Linux only, and only where the system lets this user make one.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import socket
import struct
import sys
from pathlib import Path

_NEW_USER, _NEW_NET = 0x10000000, 0x40000000  # linux/sched.h
_PR_SET_DUMPABLE = 4
_GET_FLAGS, _SET_FLAGS, _UP = 0x8913, 0x8914, 1  # linux/sockios.h, linux/if.h
_INTERFACE = struct.Struct("=16sh22x")  # struct ifreq: a name, and flags


def isolate_network() -> bool:
    """Move this process, and those that it will fork, into a network of their own, with a loopback interface.

    Call it before there is a second thread. Returns whether it was done. False: nothing has changed.
    """
    return sys.platform == "linux" and _works() and _isolate()


def _works() -> bool:
    """Whether a child can do it: it cannot be undone, so it is tried there first."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            status = 0 if _isolate() else 1
        finally:
            os._exit(status)  # also after an error, which is the answer
    return os.waitpid(child, 0)[1] == 0


def _isolate() -> bool:
    """False if the system refuses it: also if it allowed it in the child, but no namespace is left since. Raises `OSError`."""
    libc = ctypes.CDLL(None)
    user, group = os.geteuid(), os.getegid()
    # Root needs no namespace of users, and would lose its rights on files in one. Everybody else needs one to be allowed this.
    if libc.unshare(_NEW_NET if user == 0 else _NEW_NET | _NEW_USER):
        return False
    if user:
        Path("/proc/self/setgroups").write_text("deny", encoding="ascii")
        Path("/proc/self/uid_map").write_text(f"{user} {user} 1", encoding="ascii")
        Path("/proc/self/gid_map").write_text(f"{group} {group} 1", encoding="ascii")
        libc.prctl(_PR_SET_DUMPABLE, 1)  # the kernel had taken this user's access to /proc/self away
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        asked = fcntl.ioctl(control, _GET_FLAGS, _INTERFACE.pack(b"lo", 0))
        _, flags = _INTERFACE.unpack_from(asked)
        fcntl.ioctl(control, _SET_FLAGS, _INTERFACE.pack(b"lo", flags | _UP))
    return True
