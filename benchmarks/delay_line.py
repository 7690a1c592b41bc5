"""A link with delay between two network namespaces: two TUN devices and one loop between them.

The kernel's own delay (netem) is missing on many machines; this needs root and /dev/net/tun only.
Packets are held for a fixed time and never lost or reordered. The devices take segmentation upon
them, so what the loop sees are up to 64 KiB of a TCP stream at a time, and Python carries some
hundred MB/s, while TCP sees an ordinary link of 1,500 B.

`python -m benchmarks.delay_line A B DELAY_MS` runs until its input ends, then the namespaces go;
`link` does that for a benchmark.
"""

import fcntl
import os
import select
import signal
import struct
import subprocess
import sys
import time
from collections import deque
from collections.abc import Generator
from contextlib import contextmanager

from benchmarks.orders import Child, Failed, say

TUNSETIFF = 0x400454CA  # linux/if_tun.h
TUNSETOFFLOAD = 0x400454D0
IFF_TUN, IFF_NO_PI, IFF_VNET_HDR = 0x0001, 0x1000, 0x4000
TUN_F_CSUM, TUN_F_TSO4 = 0x01, 0x02
MTU = 1500  # bytes
READ_MAX = 1 << 17  # bytes: 64 KiB of segments and the header that says how to cut them
BATCH = 64  # packets read in a row from one side before the other has its turn
QUEUE = 20_000  # packets that the devices hold: nothing is lost by the line itself
IPS = ("10.111.0.1", "10.111.0.2")


def _open_tun(name: str) -> int:
    tun = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(
        tun, TUNSETIFF, struct.pack("16sH", name.encode(), IFF_TUN | IFF_NO_PI | IFF_VNET_HDR)
    )
    fcntl.ioctl(tun, TUNSETOFFLOAD, TUN_F_CSUM | TUN_F_TSO4)
    return tun


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True, timeout=10.0)


def _furnish(namespace: str, device: str, ip: str, other: str) -> None:
    """Make a namespace with the device in it; the file descriptor stays outside."""
    _ip("netns", "add", namespace)
    _ip("link", "set", device, "netns", namespace)
    _ip("-n", namespace, "link", "set", "lo", "up")
    _ip("-n", namespace, "link", "set", device, "mtu", str(MTU), "txqueuelen", str(QUEUE), "up")
    _ip("-n", namespace, "addr", "add", ip, "peer", other, "dev", device)


def _carry(tuns: tuple[int, int], delay_s: float) -> None:
    """Hold every packet for the delay, both ways, until standard input ends."""
    held: dict[int, deque[tuple[float, bytes]]] = {tun: deque() for tun in tuns}
    others = {tuns[0]: tuns[1], tuns[1]: tuns[0]}
    while True:
        due = min((queue[0][0] for queue in held.values() if queue), default=None)
        wait_s = None if due is None else max(0.0, due - time.monotonic())
        readable, _, _ = select.select([*tuns, 0], [], [], wait_s)
        if 0 in readable:
            return
        for tun in readable:
            _take(tun, held[others[tun]], delay_s)
        now = time.monotonic()
        for tun, queue in held.items():
            while queue and queue[0][0] <= now:
                os.write(tun, queue.popleft()[1])


def _take(tun: int, queue: deque[tuple[float, bytes]], delay_s: float) -> None:
    for _ in range(BATCH):
        try:
            packet = os.read(tun, READ_MAX)
        except BlockingIOError:
            return
        queue.append((time.monotonic() + delay_s, packet))


@contextmanager
def link(delay_ms: float) -> Generator[tuple[str, str]]:
    """Yield two namespaces with the line between them; they have `IPS`. Raises Failed."""
    names = (f"shoal-{os.getpid()}-a", f"shoal-{os.getpid()}-b")
    argv = [sys.executable, "-m", "benchmarks.delay_line", *names, str(delay_ms)]
    with Child("delay line", argv) as line:
        if "error" in line.hello:
            raise Failed(line.hello["error"])
        try:
            yield names
        finally:
            line.finish()


def main(first: str, second: str, delay_ms: float) -> None:
    """Make the namespaces and carry packets; say {} when it works, or what is missing.

    Also if whoever started it is killed, its input ends, and the namespaces go.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's: it ends our input
    devices = (f"sa{os.getpid()}", f"sb{os.getpid()}")
    try:
        tuns = (_open_tun(devices[0]), _open_tun(devices[1]))
        _furnish(first, devices[0], IPS[0], IPS[1])
        _furnish(second, devices[1], IPS[1], IPS[0])
    except (OSError, subprocess.SubprocessError) as error:
        say({"error": f"no network namespaces with a delay line here (needs root): {error}"})
    else:
        say({})
        _carry(tuns, delay_ms / 1e3)
    finally:
        for name in (first, second):
            subprocess.run(["ip", "netns", "del", name], capture_output=True, timeout=10.0)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], float(sys.argv[3]))
