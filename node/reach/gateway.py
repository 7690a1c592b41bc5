"""Asking a router for a port: PCP (RFC 6887) and its predecessor NAT-PMP (RFC 6886), sans-IO.

Both are one UDP datagram and one answer, at port 5351 of the default gateway. A router of the older
kind answers a PCP request in its own version, which is how one learns to ask that way. Ours,
because no library for them is kept; UPnP (`upnp.py`) has one.
"""

import ipaddress
import socket
import struct
from dataclasses import dataclass
from pathlib import Path

from wire.errors import BadMessage

PORT = 5351
ANSWER_MAX = 1100  # bytes of one datagram (RFC 6887, 7)
_MAP = 1
_TCP = 6
_ANSWER = 0x80  # of the opcode
_MAP_TCP = 2  # NAT-PMP's opcode
_EXTERNAL = 0  # NAT-PMP: what is your external address?
_NONCE_BYTES = 12
_PCP_REFUSALS = {
    1: "its version is another",
    2: "not authorised",
    3: "malformed request",
    4: "opcode not supported",
    8: "no resources",
    9: "protocol not supported",
    10: "quota exceeded",
    12: "address mismatch: another router is between",
}
_NATPMP_REFUSALS = {
    1: "version not supported",
    2: "not authorised",
    3: "the router has no address",
    4: "no resources",
    5: "opcode not supported",
}
_UNSUPPORTED_VERSION = 1


@dataclass(frozen=True)
class Granted:
    """A port that a router forwards to us, for `lifetime_s` from now."""

    external_host: str
    external_port: int
    lifetime_s: int


@dataclass(frozen=True)
class Refused:
    """It said no. `is_older`: it speaks NAT-PMP only."""

    reason: str
    is_older: bool = False


def pcp_map(nonce: bytes, client_host: str, port: int, wanted_port: int, lifetime_s: int) -> bytes:
    """Return a MAP request for TCP. lifetime_s: 0 deletes. nonce: 12 bytes, the mapping's own."""
    assert len(nonce) == _NONCE_BYTES, nonce
    header = struct.pack("!BBHI16s", 2, _MAP, 0, lifetime_s, _as_ip6(client_host))
    anything = _as_ip6("0.0.0.0")
    body = struct.pack("!12sB3xHH16s", nonce, _TCP, port, wanted_port, anything)
    return header + body


def read_pcp(data: bytes, nonce: bytes, port: int) -> Granted | Refused:
    """Read the answer to `pcp_map`. Raises BadMessage for what is none."""
    if len(data) >= 4 and data[0] == 0:
        return Refused("it speaks NAT-PMP", is_older=True)
    if not 24 <= len(data) <= ANSWER_MAX or data[0] != 2 or data[1] != _MAP | _ANSWER:
        raise BadMessage(f"no answer of PCP: {len(data)} bytes")
    code, lifetime_s = data[3], int.from_bytes(data[4:8], "big")
    if code:
        return Refused(_PCP_REFUSALS.get(code, f"error {code}"), code == _UNSUPPORTED_VERSION)
    if len(data) < 60:
        raise BadMessage("PCP answer cut short")
    told, protocol, internal, external, host = struct.unpack("!12sB3xHH16s", data[24:60])
    if told != nonce or protocol != _TCP or internal != port:
        raise BadMessage("PCP answer about another mapping")
    ip = ipaddress.IPv6Address(host)
    return _granted(str(ip.ipv4_mapped or ip), external, lifetime_s)


def natpmp_external() -> bytes:
    """Return the request for the router's external address."""
    return struct.pack("!BB", 0, _EXTERNAL)


def read_natpmp_external(data: bytes) -> str | Refused:
    """Read the answer: an IPv4 address. Raises BadMessage."""
    refused = _natpmp_refusal(data, _EXTERNAL, 12)
    return refused or str(ipaddress.IPv4Address(data[8:12]))


def natpmp_map(port: int, wanted_port: int, lifetime_s: int) -> bytes:
    """Return a mapping request for TCP; lifetime_s 0 deletes."""
    return struct.pack("!BBHHHI", 0, _MAP_TCP, 0, port, wanted_port, lifetime_s)


def read_natpmp_map(data: bytes, port: int, external_host: str) -> Granted | Refused:
    """Read the answer to `natpmp_map`. Raises BadMessage."""
    if refused := _natpmp_refusal(data, _MAP_TCP, 16):
        return refused
    internal, external, lifetime_s = struct.unpack("!HHI", data[8:16])
    if internal != port:
        raise BadMessage("NAT-PMP answer about another mapping")
    return _granted(external_host, external, lifetime_s)


def default_gateway(table: Path = Path("/proc/net/route")) -> str | None:
    """Return the IPv4 address of the default router; None without one, or not on Linux."""
    try:
        lines = table.read_text().splitlines()[1:]
    except OSError:
        return None
    routes: list[tuple[int, str]] = []
    for line in lines:
        fields = line.split()
        if len(fields) >= 8 and fields[1] == "00000000" and fields[7] == "00000000":
            host = socket.inet_ntoa(struct.pack("=I", int(fields[2], 16)))
            if host != "0.0.0.0":
                routes.append((int(fields[6]), host))
    return min(routes)[1] if routes else None


def _granted(host: str, port: int, lifetime_s: int) -> Granted:
    if not port or ipaddress.ip_address(host).is_unspecified:
        raise BadMessage(f"a router granted {host} port {port}")
    return Granted(host, port, lifetime_s)


def _natpmp_refusal(data: bytes, opcode: int, size: int) -> Refused | None:
    if len(data) < 8 or data[0] != 0 or data[1] != opcode | _ANSWER:
        raise BadMessage(f"no answer of NAT-PMP: {len(data)} bytes")
    if code := int.from_bytes(data[2:4], "big"):
        return Refused(_NATPMP_REFUSALS.get(code, f"error {code}"))
    if len(data) < size:
        raise BadMessage("NAT-PMP answer cut short")
    return None


def _as_ip6(host: str) -> bytes:
    ip = ipaddress.ip_address(host)
    return ip.packed if ip.version == 6 else bytes(10) + b"\xff\xff" + ip.packed
