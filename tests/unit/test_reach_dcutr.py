"""Messages of /libp2p/dcutr: what is told and read, and that nothing else is."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from libp2p.relay.circuit_v2.pb.dcutr_pb2 import HolePunch
from multiaddr import Multiaddr

from node.host.addresses import Address, parse_address
from node.reach.dcutr import (
    CANDIDATES_MAX,
    MESSAGE_MAX,
    Connect,
    Inbox,
    Message,
    Sync,
    decode,
    encode,
)
from wire.errors import BadMessage, PeerUnreachable

HERE = [
    parse_address(text)
    for text in ("/ip4/192.168.1.7/tcp/4001", "/ip6/2001:db8::7/tcp/4001", "/ip4/11.1.0.2/tcp/9")
]


class Bytes:
    """A stream that has all it will ever have."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    async def read(self, max_bytes: int) -> bytes:
        size = min(max_bytes, 7)  # as it comes from the network
        data, self.data = self.data[:size], self.data[size:]
        return data


async def test_addresses_are_told_as_libp2p_writes_them() -> None:
    data = encode(Connect(tuple(HERE)))
    found = HolePunch.FromString(data[1:])
    assert [str(Multiaddr(each)) for each in found.ObsAddrs] == [str(each) for each in HERE]
    assert await Inbox(Bytes(data)).next() == Connect(tuple(HERE))
    assert await Inbox(Bytes(encode(Sync()))).next() == Sync()


async def test_a_long_message_is_read_whole() -> None:
    many = tuple(Address("ip4", "11.1.0.2", 5000 + i) for i in range(CANDIDATES_MAX))
    assert await Inbox(Bytes(encode(Connect(many)))).next() == Connect(many)


def test_too_many_candidates_are_cut_on_both_sides() -> None:
    many = tuple(Address("ip4", "11.1.0.2", 5000 + i) for i in range(CANDIDATES_MAX + 5))
    packed = [bytes(Multiaddr(str(each)).to_bytes()) for each in many]
    body = HolePunch(type=HolePunch.CONNECT, ObsAddrs=packed).SerializeToString()
    assert decode(body) == Connect(many[:CANDIDATES_MAX])
    assert len(HolePunch.FromString(encode(Connect(many))[2:]).ObsAddrs) == CANDIDATES_MAX


def test_what_is_not_tcp_on_an_ip_address_is_left_out() -> None:
    peer = "12D3KooWQYhTNQdmr3ArTeUHRYzFg94BKyTkoWBDWez9kSCVe2Xo"
    others = [
        f"/ip4/11.1.0.2/tcp/4001/p2p/{peer}/p2p-circuit",
        "/ip4/11.1.0.2/udp/4001/quic-v1",
        "/dns4/example.org/tcp/4001",
        "/ip4/11.1.0.2/tcp/4001/ws",
        "/ip4/11.1.0.2/tcp/0",
    ]
    packed = [bytes(Multiaddr(each).to_bytes()) for each in others] + [b"", b"\x04", b"\xff" * 30]
    body = HolePunch(type=HolePunch.CONNECT, ObsAddrs=packed).SerializeToString()
    assert decode(body) == Connect(())


@pytest.mark.parametrize(
    "data", [b"", b"\x00", b"\xff\x7f" + bytes(4096), b"\x80\x80\x01", b"\x02\x08"]
)
async def test_lengths_out_of_bounds_end_it(data: bytes) -> None:
    with pytest.raises((BadMessage, PeerUnreachable)):
        await Inbox(Bytes(data)).next()


def test_a_large_message_is_not_parsed() -> None:
    with pytest.raises(BadMessage, match="over"):
        decode(bytes(MESSAGE_MAX + 1))


@given(st.binary(max_size=300))
def test_any_bytes(body: bytes) -> None:
    try:
        message: Message = decode(body)
    except BadMessage:
        return
    assert decode(encode(message)[1 if len(encode(message)) < 0x81 else 2 :]) == message
