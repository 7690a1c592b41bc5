"""Binary multiaddrs: there and back, the specification's numbers, and whatever bytes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from multiaddr import Multiaddr

from wire import multiaddrs
from wire.ids import peer_id_of

A, B = peer_id_of(bytes(32)), peer_id_of(bytes([1]) * 32)

KNOWN = [
    "/ip4/192.0.2.1/tcp/4001",
    "/ip6/2001:db8::1/tcp/65535",
    "/dns/a/tcp/1",
    "/dns4/example.org/tcp/443",
    "/dns6/example.org/tcp/443",
    f"/ip4/192.0.2.1/tcp/4001/p2p/{A}",
    f"/ip6/::1/tcp/4001/p2p/{A}/p2p-circuit/p2p/{B}",
    f"/dns4/{'.'.join(['a' * 31] * 4)}/tcp/4001/p2p/{A}/p2p-circuit",
]


@pytest.mark.parametrize("text", KNOWN)
def test_it_is_what_the_library_makes_of_it(text: str) -> None:
    packed = multiaddrs.pack(text)
    assert packed == Multiaddr(text).to_bytes()
    assert multiaddrs.unpack(packed) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "/",
        "/ip4/192.0.2.1",
        "/ip4/192.0.2.1/udp/4001",
        "/ip4/192.0.2.300/tcp/4001",
        "/ip4/192.0.2.1/tcp/65536",
        "/ip4/192.0.2.1/tcp/-1",
        "/ip4/192.0.2.1/tcp/4001/ws",
        "/ip4/192.0.2.1/tcp/4001/p2p",
        "/ip4/192.0.2.1/tcp/4001/p2p/QmNothing",
        "/ip6/fe80::1%eth0/tcp/4001",
        "/dns4/exa mple/tcp/1",
        f"/dns4/{'a' * 128}/tcp/1",
        "/unix/a/tcp/1",
        "x/ip4/192.0.2.1/tcp/4001",
        "/ip4/1\0/tcp/1",
        "/ip4/192.0.2.1/tcp/4001" + f"/p2p/{A}" * 5,
    ],
)
def test_what_we_do_not_dial_has_no_form(text: str) -> None:
    assert multiaddrs.pack(text) is None


@pytest.mark.parametrize(
    "text", ["/ip4/192.0.2.1/udp/4001/quic-v1", "/ip4/192.0.2.1/tcp/4001/ws", "/ip6/::1/udp/1"]
)
def test_other_kinds_are_passed_over(text: str) -> None:
    assert multiaddrs.unpack(Multiaddr(text).to_bytes()) is None


@given(st.binary(max_size=300))
def test_any_bytes(packed: bytes) -> None:
    text = multiaddrs.unpack(packed)
    assert text is None or multiaddrs.pack(text) == packed


@given(st.sampled_from(KNOWN), st.integers(0, 300), st.integers(0, 255))
def test_broken_ones(text: str, at: int, byte: int) -> None:
    packed = bytearray(multiaddrs.pack(text) or b"")
    packed[at % len(packed)] = byte
    read = multiaddrs.unpack(bytes(packed))
    assert read is None or multiaddrs.pack(read) == packed
    assert multiaddrs.unpack(bytes(packed[: at % len(packed)])) != text
