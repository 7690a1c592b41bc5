"""A network namespace without a name, and what is done inside it.

A namespace lives as long as this process holds its file descriptor or a process or socket is in it:
nothing is left in the file system, and the kernel removes it (with all its devices) when this
process dies, however it dies. What runs inside is started from a thread that has entered the
namespace (setns(2) is per thread, and children inherit it), so that sockets and processes of any
number of hosts are made from one Python process.
"""

import ctypes
import os
import socket
import struct
import subprocess
import threading
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from tests.net.lab.reaper import reap

T = TypeVar("T")

CLONE_NEWNET = 0x40000000  # linux/sched.h
NETLINK_NETFILTER = 12  # linux/netlink.h
COMMAND_S = 20.0  # ip and nft take milliseconds; a crowded machine takes longer
FLUSH_CONNTRACK = struct.pack(
    "=IHHIIBBH", 20, (1 << 8) | 2, 1 | 4, 0, 0, 0, 0, 0
)  # linux/netfilter/nfnetlink_conntrack.h: IPCTNL_MSG_CT_DELETE of everything, acknowledged

_libc = ctypes.CDLL(None, use_errno=True)


class LabError(Exception):
    """A tool of the lab refused. The message has its order and its answer."""


def _in_thread(work: Callable[[], T]) -> T:
    """Do it in a thread of its own, whose namespace may change; return or raise what it did."""
    results: list[T] = []
    errors: list[BaseException] = []

    def body() -> None:
        try:
            results.append(work())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return results[0]


def _check(status: int) -> None:
    if status:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


class Namespace:
    """One network namespace. `path` names it for `ip`, and for nsenter(1) while this runs."""

    def __init__(self, name: str) -> None:
        self.name = name

        def make() -> int:
            _check(_libc.unshare(CLONE_NEWNET))
            return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)

        self._fd = _in_thread(make)
        self.inode = os.fstat(self._fd).st_ino
        self.path = f"/proc/{os.getpid()}/fd/{self._fd}"

    def close(self) -> None:
        """Let go of it; the kernel removes it once no process is in it."""
        os.close(self._fd)

    def call(self, work: Callable[[], T]) -> T:
        """Do `work` inside: sockets that it opens and processes that it starts stay there."""

        def enter() -> T:
            _check(_libc.setns(self._fd, CLONE_NEWNET))
            return work()

        return _in_thread(enter)

    def popen(self, args: list[str], **options: Any) -> "subprocess.Popen[Any]":
        """Start a process inside; `options` as of subprocess.Popen."""
        return self.call(lambda: subprocess.Popen(args, **options))

    def run(self, args: list[str], **options: Any) -> "subprocess.CompletedProcess[str]":
        """Run a process inside to its end; `options` as of subprocess.run, text by default."""
        options = {"capture_output": True, "text": True, "timeout": COMMAND_S, **options}
        return self.call(lambda: subprocess.run(args, **options))

    def _order(self, args: list[str], text: str) -> None:
        done = self.run(args, input=text)
        if done.returncode:
            raise LabError(f"{self.name}: {' '.join(args)}: {done.stderr.strip()}\n{text}")

    def ip(self, *lines: str) -> None:
        """Give orders to ip(8), in order; the first that fails raises LabError."""
        self._order(["ip", "-batch", "-"], "\n".join(lines) + "\n")

    def nft(self, text: str) -> None:
        """Load a file of nft(8): all of it or, with LabError, nothing."""
        self._order(["nft", "-f", "-"], text)

    def sysctl(self, values: Mapping[str, str | int]) -> None:
        """Set kernel options; those that this kernel has not are passed over."""

        def write() -> None:
            for key, value in values.items():
                path = "/proc/sys/" + key.replace(".", "/")
                try:
                    with open(path, "w") as file:
                        file.write(str(value))
                except OSError:
                    continue

        self.call(write)

    def forget_connections(self) -> None:
        """Empty the table of connections (and address translations) of a router."""

        def flush() -> None:
            with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER) as link:
                link.bind((0, 0))
                link.send(FLUSH_CONNTRACK)
                error = struct.unpack_from("=i", link.recv(4096), 16)[0]
                if error:
                    raise LabError(f"{self.name}: conntrack: {os.strerror(-error)}")

        self.call(flush)

    def kill(self) -> None:
        """Kill (-9) all processes inside, and wait until they are gone."""
        reap({self.inode})
