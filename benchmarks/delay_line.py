"""Links with delay between network namespaces: a TUN device in each and one loop between them.

The kernel's own delay (netem) is missing on many machines; this needs root and /dev/net/tun only.
Packets are held for a fixed time and never lost or reordered. The devices take segmentation upon
them, so what the loop sees are up to 64 KiB of a TCP stream at a time, and Python carries some
hundred MB/s, while TCP sees an ordinary link of 1,500 B.

`python -m benchmarks.delay_line DELAY_MS A B ...` runs until its input ends, then the namespaces
go; `link` (two) and `star` (any number, each as far from all others) do that for a benchmark.
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
IPS = tuple(f"10.111.0.{number}" for number in range(1, 17))  # of the namespaces, in their order
TO_AT = 10 + 16  # where an IPv4 packet says whom it is for, behind the header of the device


def _open_tun(name: str) -> int:
    tun = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(
        tun, TUNSETIFF, struct.pack("16sH", name.encode(), IFF_TUN | IFF_NO_PI | IFF_VNET_HDR)
    )
    fcntl.ioctl(tun, TUNSETOFFLOAD, TUN_F_CSUM | TUN_F_TSO4)
    return tun


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True, timeout=10.0)


def _furnish(namespace: str, device: str, ip: str) -> None:
    """Make a namespace with the device in it; the file descriptor stays outside."""
    _ip("netns", "add", namespace)
    _ip("link", "set", device, "netns", namespace)
    _ip("-n", namespace, "link", "set", "lo", "up")
    _ip("-n", namespace, "link", "set", device, "mtu", str(MTU), "txqueuelen", str(QUEUE), "up")
    _ip("-n", namespace, "addr", "add", f"{ip}/24", "dev", device)


def _carry(tuns: list[int], delay_s: float) -> None:
    """Hold every packet for the delay, whoever it is for, until standard input ends."""
    held: deque[tuple[float, int, bytes]] = deque()
    by_ip = {bytes(map(int, ip.split("."))): tun for ip, tun in zip(IPS, tuns, strict=False)}
    while True:
        wait_s = max(0.0, held[0][0] - time.monotonic()) if held else None
        readable, _, _ = select.select([*tuns, 0], [], [], wait_s)
        if 0 in readable:
            return
        for tun in readable:
            _take(tun, held, by_ip, delay_s)
        now = time.monotonic()
        while held and held[0][0] <= now:
            _, tun, packet = held.popleft()
            os.write(tun, packet)


def _take(
    tun: int,
    held: deque[tuple[float, int, bytes]],
    by_ip: dict[bytes, int],
    delay_s: float,
) -> None:
    for _ in range(BATCH):
        try:
            packet = os.read(tun, READ_MAX)
        except BlockingIOError:
            return
        receiver = by_ip.get(packet[TO_AT : TO_AT + 4])
        if receiver is not None:  # else not IPv4, or for nobody here
            held.append((time.monotonic() + delay_s, receiver, packet))


@contextmanager
def link(delay_ms: float) -> Generator[tuple[str, str]]:
    """Yield two namespaces with the line between them; they have `IPS`. Raises Failed."""
    with star(delay_ms, 2) as (first, second):
        yield first, second


@contextmanager
def star(delay_ms: float, size: int) -> Generator[list[str]]:
    """Yield so many namespaces, every two of them a delay apart; they have `IPS`. Raises Failed."""
    names = [f"shoal-{os.getpid()}-{number}" for number in range(size)]
    argv = [sys.executable, "-m", "benchmarks.delay_line", str(delay_ms), *names]
    with Child("delay line", argv) as line:
        if "error" in line.hello:
            raise Failed(line.hello["error"])
        try:
            yield names
        finally:
            line.finish()


def main(delay_ms: float, names: list[str]) -> None:
    """Make the namespaces and carry packets; say {} when it works, or what is missing.

    Also if whoever started it is killed, its input ends, and the namespaces go.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's: it ends our input
    devices = [f"s{os.getpid()}.{number}" for number in range(len(names))]
    try:
        tuns = [_open_tun(device) for device in devices]
        for name, device, ip in zip(names, devices, IPS, strict=False):
            _furnish(name, device, ip)
    except (OSError, subprocess.SubprocessError) as error:
        say({"error": f"no network namespaces with a delay line here (needs root): {error}"})
    else:
        say({})
        _carry(tuns, delay_ms / 1e3)
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], capture_output=True, timeout=10.0)


if __name__ == "__main__":
    main(float(sys.argv[1]), sys.argv[2:])
