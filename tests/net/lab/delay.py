"""A line with delay and loss, in user space: netem is not in every kernel, NFQUEUE is in most.

The middle of the lab queues every packet that it forwards; this process holds each for the delay of
the line that it came by and of the line that it leaves by, and then lets it go. Only what a packet
came and leaves by is read, never its contents, and the segments of a TCP stream stay together, so
that a few thousand decisions a second carry gigabits. Source: linux/netfilter/nfnetlink_queue.h.

Run as a program it takes the number of an inherited netlink socket, and orders from its input, one
a line: DEVICE_INDEX DELAY_MS LOSS (a share, 0 to 1). It ends with its input.
"""

import heapq
import os
import random
import select
import socket
import struct
import subprocess
import sys
import time

from tests.net.lab.namespaces import NETLINK_NETFILTER, LabError, Namespace

QUEUE = 0
WAITING_MAX = 1 << 17  # packets held; a line that delays never drops
RECEIVE_BYTES = 1 << 25
BATCH = 128  # packets read before due ones are released
VERDICT, CONFIG = (3 << 8) | 1, (3 << 8) | 2
DROP, ACCEPT = 0, 1
_verdict = struct.Struct("=IHHIIBBHHH")  # headers and the attribute's; the two numbers follow
_numbers = struct.Struct(">II")
_attribute = struct.Struct("=HH")
_be32 = struct.Struct(">I")


def _config(kind: int, payload: bytes) -> bytes:
    attribute = _attribute.pack(4 + len(payload), kind) + payload
    attribute += bytes(-len(attribute) % 4)
    head = struct.pack("=IHHIIBBH", 20 + len(attribute), CONFIG, 1 | 4, 0, 0, 0, 0, QUEUE)
    return head + attribute


def open_queue() -> socket.socket:
    """Take the queue of the namespace that this thread is in. Raises LabError if it can't."""
    link = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER)
    link.bind((0, 0))
    link.setsockopt(socket.SOL_SOCKET, 33, RECEIVE_BYTES)  # SO_RCVBUFFORCE
    link.setsockopt(270, 5, 1)  # SOL_NETLINK, NETLINK_NO_ENOBUFS: a full buffer is no error
    for kind, payload in (
        (1, struct.pack(">BBH", 1, 0, 0)),  # bind
        (2, struct.pack(">IB", 0, 1)),  # nothing of the packet's contents
        (3, struct.pack(">I", WAITING_MAX)),
    ):
        link.send(_config(kind, payload))
        error = struct.unpack_from("=i", link.recv(4096), 16)[0]
        if error:
            raise LabError(f"no NFQUEUE here: {os.strerror(-error)}")
    # flags and their mask: GSO, which keeps segments together
    flags = _attribute.pack(8, 4) + _be32.pack(4) + _attribute.pack(8, 5) + _be32.pack(4)
    link.send(struct.pack("=IHHIIBBH", 20 + len(flags), CONFIG, 1, 0, 0, 0, 0, QUEUE) + flags)
    return link


def _order(packet: int, decision: int) -> bytes:
    head = _verdict.pack(32, VERDICT, 1, 0, 0, 0, 0, QUEUE, 12, 2)
    return head + _numbers.pack(decision, packet)


def _read(message: bytes) -> tuple[int, int, int]:
    """Return the number of a packet, and the devices it came and leaves by."""
    packet = incoming = outgoing = 0
    at = 20
    while at + 4 <= len(message):
        length, kind = _attribute.unpack_from(message, at)
        if kind == 1:
            packet = _be32.unpack_from(message, at + 4)[0]
        elif kind == 5:
            incoming = _be32.unpack_from(message, at + 4)[0]
        elif kind == 6:
            outgoing = _be32.unpack_from(message, at + 4)[0]
            break
        at += max(4, (length + 3) & ~3)
    return packet, incoming, outgoing


class Line:
    """The loop of the process."""

    def __init__(self, link: socket.socket) -> None:
        self._link = link
        self._delay_s: dict[int, float] = {}
        self._loss: dict[int, float] = {}
        self._held: list[tuple[float, int]] = []

    def _set(self, line: bytes) -> None:
        device, delay_ms, loss = line.split()
        self._delay_s[int(device)] = float(delay_ms) / 1000
        self._loss[int(device)] = float(loss)

    def _take(self) -> None:
        now = time.monotonic()
        for _ in range(BATCH):
            try:
                message = self._link.recv(4096, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return
            packet, incoming, outgoing = _read(message)
            kept = (1 - self._loss.get(incoming, 0.0)) * (1 - self._loss.get(outgoing, 0.0))
            if kept < 1 and random.random() >= kept:
                self._link.send(_order(packet, DROP))
                continue
            delay_s = self._delay_s.get(incoming, 0.0) + self._delay_s.get(outgoing, 0.0)
            heapq.heappush(self._held, (now + delay_s, packet))

    def _release(self) -> None:
        now = time.monotonic()
        orders: list[bytes] = []
        while self._held and self._held[0][0] <= now and len(orders) < BATCH:
            orders.append(_order(heapq.heappop(self._held)[1], ACCEPT))
        if orders:
            self._link.send(b"".join(orders))

    def run(self) -> None:
        """Delay until the input ends."""
        inputs = [self._link.fileno(), 0]
        while True:
            wait = max(0.0, self._held[0][0] - time.monotonic()) if self._held else None
            ready, _, _ = select.select(inputs, [], [], wait)
            if 0 in ready:
                orders = os.read(0, 65536)
                if not orders:
                    return
                for line in orders.splitlines():
                    self._set(line)
                os.write(1, b"%d\n" % len(orders.splitlines()))
            if inputs[0] in ready:
                self._take()
            self._release()


class DelayLine:
    """The process, seen from the lab."""

    def __init__(self, core: Namespace) -> None:
        link = core.call(open_queue)
        for tool in ("iptables", "ip6tables"):
            rule = ["-w", "-A", "FORWARD", "-j", "NFQUEUE", "--queue-num", str(QUEUE)]
            done = core.run([tool, *rule, "--queue-bypass"])
            if done.returncode:
                raise LabError(f"no delay without {tool}: {done.stderr}")
        self._process = subprocess.Popen(
            [sys.executable, "-S", "-m", "tests.net.lab.delay", str(link.fileno())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=[link.fileno()],
            start_new_session=True,
            cwd=os.path.abspath(os.path.join(os.path.dirname(__file__), *[".."] * 3)),
        )
        link.close()

    def set(self, device_index: int, delay_ms: float, loss: float) -> None:
        """Give one line its delay (one way) and loss, from now on."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{device_index} {delay_ms} {loss}\n".encode())
        self._process.stdin.flush()
        self._process.stdout.readline()

    def close(self) -> None:
        """End it; packets go undelayed."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait(10.0)


if __name__ == "__main__":
    Line(socket.socket(fileno=int(sys.argv[1]))).run()
