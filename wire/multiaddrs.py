"""Multiaddrs in their binary form, as libp2p's messages carry them: those of the kind that we dial.

`/ip4|ip6|dns|dns4|dns6/HOST/tcp/PORT[/p2p/RELAY/p2p-circuit][/p2p/PEER]`; what they mean is
`node.host.addresses`' business. Source: multiformats/multiaddr, protocols table.
"""

import functools
import re
import socket
import struct

from wire.errors import BadMessage
from wire.ids import PeerId, bytes_of, peer_of

PACKED_MAX = 256  # bytes; the longest, a name of 127 with a relay and a peer, has 221
_PACKED_MIN = 6  # /dns/a/tcp/1
_TEXT_MAX = 288  # characters of the longest
_KNOWN = 8192  # addresses remembered, both ways; 8 MB at most

_TCP = b"\x06"
_P2P = b"\xa5\x03\x26"  # 421, and the length of an Ed25519 peer ID: 38
_PEER_BYTES = 38
_CIRCUIT = b"\xa2\x02"  # 290
_IP = {"ip4": (b"\x04", socket.AF_INET), "ip6": (b"\x29", socket.AF_INET6)}
_NAMES = {"dns": b"\x35", "dns4": b"\x36", "dns6": b"\x37"}
_FROM_IP = {4: ("ip4", 4, socket.AF_INET), 41: ("ip6", 16, socket.AF_INET6)}
_FROM_NAMES = {code[0]: name for name, code in _NAMES.items()}
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,127}")
_PORT = re.compile(r"[0-9]{1,5}")


@functools.lru_cache(maxsize=_KNOWN)
def pack(text: str) -> bytes | None:
    """Return an address's binary form; None for what is no address of this kind."""
    parts = text.split("/") if len(text) <= _TEXT_MAX else []
    if len(parts) < 5 or parts[0] or parts[3] != "tcp" or not _PORT.fullmatch(parts[4]):
        return None
    host, port = _pack_host(parts[1], parts[2]), int(parts[4])
    if host is None or port > 0xFFFF:
        return None
    packed = host + _TCP + struct.pack("!H", port)
    at = 5
    while at < len(parts):
        if parts[at] == "p2p-circuit":
            packed += _CIRCUIT
            at += 1
            continue
        if parts[at] != "p2p" or at + 1 == len(parts):
            return None
        try:
            packed += _P2P + bytes_of(PeerId(parts[at + 1]))
        except BadMessage:
            return None
        at += 2
    return packed


@functools.lru_cache(maxsize=_KNOWN)
def unpack(packed: bytes) -> str | None:
    """Return an address as text; None for every other kind, and for what is no address."""
    if not _PACKED_MIN <= len(packed) <= PACKED_MAX:
        return None
    host, at = _unpack_host(packed)
    if host is None or packed[at : at + 1] != _TCP or len(packed) < at + 3:
        return None
    text = f"{host}/tcp/{struct.unpack_from('!H', packed, at + 1)[0]}"
    at += 3
    while at < len(packed):
        if packed.startswith(_CIRCUIT, at):
            text += "/p2p-circuit"
            at += len(_CIRCUIT)
            continue
        if not packed.startswith(_P2P, at):
            return None
        at += len(_P2P)
        try:
            text += f"/p2p/{peer_of(packed[at : at + _PEER_BYTES])}"
        except BadMessage:
            return None
        at += _PEER_BYTES
    return text


def _pack_host(network: str, host: str) -> bytes | None:
    if network in _NAMES and _NAME.fullmatch(host):
        return _NAMES[network] + bytes((len(host),)) + host.encode()
    if network not in _IP:
        return None
    code, family = _IP[network]
    try:
        return code + socket.inet_pton(family, host)
    except (OSError, ValueError):
        return None


def _unpack_host(packed: bytes) -> tuple[str | None, int]:
    """Return the host with its network, and where it ends."""
    code = packed[0]
    if code in _FROM_IP:
        network, size, family = _FROM_IP[code]
        raw = packed[1 : 1 + size]
        return (
            f"/{network}/{socket.inet_ntop(family, raw)}" if len(raw) == size else None
        ), 1 + size
    size = packed[1]
    name = packed[2 : 2 + size].decode("ascii", "replace")
    if code not in _FROM_NAMES or len(name) != size or not _NAME.fullmatch(name):
        return None, 0
    return f"/{_FROM_NAMES[code]}/{name}", 2 + size
