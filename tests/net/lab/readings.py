"""What the kernel says of a host's connections and devices: the judge of direct and relayed."""

import re
from dataclasses import dataclass

from tests.net.lab.namespaces import Namespace

_NUMBER = r":(\d+(?:\.\d+)?)"


@dataclass(frozen=True)
class Connection:
    """One TCP connection of a host, as ss(8) tells of it. Bytes are of payload, not of packets."""

    state: str
    local: tuple[str, int]
    remote: tuple[str, int]
    sent: int
    received: int
    rtt_ms: float


@dataclass(frozen=True)
class Counters:
    """Bytes and packets of one device, since it was made."""

    received: int
    received_packets: int
    sent: int
    sent_packets: int


def connections(namespace: Namespace) -> list[Connection]:
    """Return all TCP connections of a host but its listeners."""
    text = namespace.run(["ss", "-tinH"]).stdout
    found: list[Connection] = []
    for line in text.splitlines():
        if line[:1].isspace():
            last = found.pop()
            found.append(
                Connection(
                    last.state, last.local, last.remote,
                    sent=int(_value(line, "bytes_sent")),
                    received=int(_value(line, "bytes_received")),
                    rtt_ms=_value(line, "rtt"),
                )
            )  # fmt: skip
        else:
            state, _, _, local, remote = line.split()[:5]
            found.append(Connection(state, _end(local), _end(remote), 0, 0, 0.0))
    return found


def counters(namespace: Namespace) -> dict[str, Counters]:
    """Return the counters of all devices of a host or router."""

    def read() -> str:
        with open("/proc/thread-self/net/dev") as file:
            return file.read()

    devices: dict[str, Counters] = {}
    for line in namespace.call(read).splitlines()[2:]:
        name, _, values = line.partition(":")
        numbers = [int(value) for value in values.split()]
        devices[name.strip()] = Counters(numbers[0], numbers[1], numbers[8], numbers[9])
    return devices


def _value(line: str, name: str) -> float:
    match = re.search(rf"\b{name}{_NUMBER}", line)
    return float(match[1]) if match else 0.0


def _end(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    host = host.strip("[]").removeprefix("::ffff:")
    return host.partition("%")[0], int(port)
