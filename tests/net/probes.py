"""What plain sockets see of a router, and what they can do: the lab's ground truth.

All of it runs in this process: a socket belongs to the namespace in which it was opened.
"""

import contextlib
import select
import socket
import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field

from tests.net.lab.lab import Lab

Address = tuple[str, int]
PORT = 4001
WAIT_S = 0.4  # for a packet that may never come; the lab's own round trip is below 1 ms
SURE_S = 5.0  # for one that must come: the kernel's second SYN leaves after 1 s
AGAIN_S = 0.05  # between two attempts to connect
LISTENERS_MAX = 8
PREDICTED = 16  # ports of a sequential router that are tried
PATIENCE_S = 1.0  # where it can be done it takes a few round trips


def open_socket(
    lab: Lab, host: str, port: int = 0, *, udp: bool = False, wait_s: float = WAIT_S
) -> socket.socket:
    """Open a socket in a host, on a port that others may share."""

    def make() -> socket.socket:
        kind = socket.SOCK_DGRAM if udp else socket.SOCK_STREAM
        made = socket.socket(socket.AF_INET, kind)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        made.bind(("0.0.0.0", port))
        made.settimeout(wait_s)
        return made

    return lab.hosts[host].call(make)


@contextlib.contextmanager
def listening(lab: Lab, host: str, port: int) -> Generator[socket.socket]:
    """A listener in a host."""
    with open_socket(lab, host, port, wait_s=SURE_S) as listener:
        listener.listen(LISTENERS_MAX)
        yield listener


def seen_tcp(
    lab: Lab,
    host: str,
    server: str,
    *,
    server_port: int,
    port: int = PORT,
    wait_s: float = SURE_S,
) -> Address:
    """Return the address that a server sees of a connection from this port. Nothing stays open."""
    with (
        listening(lab, server, server_port) as listener,
        open_socket(lab, host, port, wait_s=wait_s) as client,
    ):
        client.connect((lab.hosts[server].ip, server_port))
        accepted, seen = listener.accept()
        with accepted:
            _reset(client)
        return str(seen[0]), int(seen[1])


def seen_udp(lab: Lab, host: str, server: str, *, server_port: int, port: int = PORT) -> Address:
    """Return the address that a server sees of a datagram from this port. Raises TimeoutError."""
    with (
        open_socket(lab, server, server_port, udp=True) as taker,
        open_socket(lab, host, port, udp=True) as client,
    ):
        client.sendto(b"x", (lab.hosts[server].ip, server_port))
        seen = taker.recvfrom(10)[1]
        return str(seen[0]), int(seen[1])


def _reset(connection: socket.socket) -> None:
    """Close without a TIME_WAIT, so that the port can be used again for the same peer."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")


@dataclass(frozen=True)
class Behaviour:
    """How a router maps and filters, in the words of RFC 4787: EIM, APDM; EIF, ADF, APDF."""

    mapping: str
    filtering: str


def behaviour_tcp(lab: Lab, host: str) -> Behaviour:
    """Find a router's behaviour for TCP with two public hosts, as RFC 5780 does for UDP."""
    ends = [("pub1", 5001), ("pub2", 5001), ("pub2", 5002)]
    seen = [seen_tcp(lab, host, server, server_port=port) for server, port in ends]
    mapping = _mapping(lab, host, seen)
    port = PORT + 1  # a port without history
    with (
        listening(lab, host, port),
        listening(lab, "pub1", 5001) as anchor,
        open_socket(lab, host, port, wait_s=SURE_S) as keeper,
    ):
        keeper.connect((lab.hosts["pub1"].ip, 5001))
        accepted, mapped = anchor.accept()
        with accepted:
            stranger = _reaches(lab, "pub2", mapped)
            known = _reaches(lab, "pub1", mapped)
    return Behaviour(mapping, _filtering(stranger, known))


def behaviour_udp(lab: Lab, host: str) -> Behaviour | None:
    """Find a router's behaviour for UDP; None: it lets none through."""
    ends = [("pub1", 5001), ("pub2", 5001), ("pub2", 5002)]
    try:
        seen = [seen_udp(lab, host, server, server_port=port) for server, port in ends]
    except TimeoutError:
        return None
    mapping = _mapping(lab, host, seen)
    with (
        open_socket(lab, "pub1", 5001, udp=True) as anchor,
        open_socket(lab, "pub1", 5002, udp=True) as other_port,
        open_socket(lab, "pub2", 5001, udp=True) as stranger,
        open_socket(lab, host, PORT + 1, udp=True) as client,
    ):
        client.sendto(b"x", (lab.hosts["pub1"].ip, 5001))
        mapped = anchor.recvfrom(10)[1]
        came: list[bool] = []
        for sender in (stranger, other_port):
            sender.sendto(b"y", mapped)
            came.append(bool(select.select([client], [], [], WAIT_S)[0]) and bool(client.recv(10)))
    return Behaviour(mapping, _filtering(*came))


def _mapping(lab: Lab, host: str, seen: Sequence[Address]) -> str:
    if seen[0][0] == lab.hosts[host].ip:
        return "none"
    return "EIM" if len(set(seen)) == 1 else "APDM"


def _filtering(stranger: bool, known: bool) -> str:
    return "EIF" if stranger else "ADF" if known else "APDF"


def _reaches(lab: Lab, host: str, address: Address) -> bool:
    with open_socket(lab, host) as client:
        try:
            client.connect(address)
        except OSError:
            return False
        _reset(client)
        return True


@dataclass
class Puncher:
    """One side of a TCP punch: it listens and connects on one port, until a connection stands."""

    lab: Lab
    host: str
    candidates: list[Address] = field(default_factory=list[Address])
    port: int = PORT

    def __post_init__(self) -> None:
        self.listener = open_socket(self.lab, self.host, self.port)
        self.listener.listen(LISTENERS_MAX)
        self.listener.setblocking(False)
        self._trying: dict[Address, socket.socket] = {}
        self.connected: list[socket.socket] = []

    def learn(self) -> list[Address]:
        """Return where the other may find this side: the next ports of a counting router, seen,
        local. They come in this order, for each packet to elsewhere moves the counter."""
        first, last = (
            seen_tcp(self.lab, self.host, server, server_port=5001, port=self.port)
            for server in ("pub1", "pub2")
        )
        step = last[1] - first[1]
        predicted = range(1, PREDICTED + 1) if 0 < step <= PREDICTED else range(0)
        found = [(last[0], last[1] + ahead) for ahead in predicted]
        return [*found, last, (self.lab.hosts[self.host].ip, self.port)]

    def step(self) -> None:
        """Look once at all attempts; begin those again that were refused."""
        with contextlib.suppress(BlockingIOError):
            self.connected.append(self.listener.accept()[0])
        for address in self.candidates:
            attempt = self._trying.get(address)
            if attempt is None:
                self._trying[address] = self._begin(address)
            elif select.select([], [attempt], [], 0)[1]:
                del self._trying[address]
                if attempt.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0:
                    self.connected.append(attempt)
                else:  # refused is "not yet"
                    attempt.close()

    def _begin(self, address: Address) -> socket.socket:
        attempt = open_socket(self.lab, self.host, self.port)
        attempt.setblocking(False)
        attempt.connect_ex(address)
        return attempt

    def close(self) -> None:
        """Close all sockets."""
        for each in [self.listener, *self._trying.values(), *self.connected]:
            _reset(each)
            each.close()


def punch(lab: Lab, one: str, other: str, *, patience_s: float = PATIENCE_S) -> bool:
    """Try to connect two hosts directly; whether one and the same connection stood at both."""
    with contextlib.ExitStack() as stack:
        a, b = Puncher(lab, one), Puncher(lab, other)
        stack.callback(a.close)
        stack.callback(b.close)
        b.candidates, a.candidates = a.learn(), b.learn()
        deadline = time.monotonic() + patience_s
        while time.monotonic() < deadline:
            a.step()
            b.step()
            if _meet(a.connected, b.connected):
                return True
            time.sleep(AGAIN_S)
    return False


def _meet(ours: list[socket.socket], theirs: list[socket.socket]) -> bool:
    """Whether a byte sent on one of ours comes out of one of theirs."""
    for mine in ours:
        with contextlib.suppress(OSError):
            mine.sendall(b"!")
    waiting, _, _ = select.select(theirs, [], [], WAIT_S if ours and theirs else 0)
    for socket_ in waiting:
        with contextlib.suppress(OSError):
            if socket_.recv(10):
                return True
    return False
