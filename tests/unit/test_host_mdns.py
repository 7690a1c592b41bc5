"""mDNS: what is announced, what is believed, and two hosts that meet over real multicast."""

import socket

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from node.host.mdns import Found, make_record, read_record
from node.host.service import LibP2pHost
from node.host.views import PeerUp
from node.tickets import SwarmKey, swarm_tag
from wire.ids import Signer

KEY, OTHER_KEY = SwarmKey(b"k" * 32), SwarmKey(b"o" * 32)
ALICE, BOB = Signer(b"a" * 32).peer, Signer(b"b" * 32).peer
HERE = (f"/ip4/192.0.2.1/tcp/4001/p2p/{ALICE}", f"/ip6/2001:db8::1/tcp/4001/p2p/{ALICE}")


def on_the_wire(record: dict[str, str]) -> dict[bytes, bytes | None]:
    return {name.encode(): value.encode() for name, value in record.items()}


def test_a_record_is_read_as_it_was_made() -> None:
    assert read_record(on_the_wire(make_record("tag", HERE)), "tag", BOB) == Found(ALICE, HERE)


def test_a_record_fits_into_one_packet() -> None:
    long = f"/dns/{'a' * 60}.{'b' * 60}/tcp/65535/p2p/{ALICE}"
    record = make_record(swarm_tag(KEY), [long] * 100)
    assert sum(len(name) + len(value) + 2 for name, value in record.items()) < 1700


@pytest.mark.parametrize(
    "record",
    [
        {},
        make_record("another swarm", HERE),
        make_record("tag", []),
        make_record("tag", ["nonsense", "/ip4/192.0.2.1/tcp/1"]),
        make_record("tag", [f"/ip4/192.0.2.1/tcp/1/p2p/{BOB}"]),  # ourselves
        make_record("tag", [HERE[0], f"/ip4/192.0.2.1/tcp/1/p2p/{Signer(b'c' * 32).peer}"]),
    ],
)
def test_other_swarms_ourselves_and_nonsense_are_not_found(record: dict[str, str]) -> None:
    assert read_record(on_the_wire(record), "tag", BOB) is None


@given(st.dictionaries(st.binary(max_size=12), st.none() | st.binary(max_size=80), max_size=12))
def test_any_record(entries: dict[bytes, bytes | None]) -> None:
    read_record(entries, "tag", BOB)
    read_record({**entries, b"shoal-swarm": b"tag"}, "tag", BOB)


def multicast_works() -> bool:
    """Send one datagram to a group on loopback and see whether it comes back."""
    group, loopback = socket.inet_aton("224.0.0.251"), socket.inet_aton("127.0.0.1")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        try:
            sock.settimeout(1)
            sock.bind(("", 0))
            sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, loopback)
            sock.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, group + loopback)
            sock.sendto(b"x", ("224.0.0.251", sock.getsockname()[1]))
            return sock.recv(1) == b"x"
        except OSError:
            return False


def test_a_change_of_network_opens_mdns_anew() -> None:
    host = LibP2pHost(b"a" * 32, KEY, [], mdns=True)
    assert host.mdns is not None
    host.network_changed()
    assert host.mdns._again.is_set()


async def test_two_hosts_of_one_swarm_meet_and_a_third_of_another_does_not() -> None:
    if not multicast_works():
        pytest.skip("no multicast on loopback here: mDNS has nothing to speak over")

    def host(seed: bytes, key: SwarmKey) -> LibP2pHost:
        return LibP2pHost(
            seed, key, ["/ip4/127.0.0.1/tcp/0"], mdns=True, mdns_interfaces=["127.0.0.1"]
        )

    a, b, c = host(b"a" * 32, KEY), host(b"b" * 32, KEY), host(b"c" * 32, OTHER_KEY)
    async with trio.open_nursery() as nursery:
        start = trio.current_time()
        for each in (a, b, c):
            await nursery.start(each.run)
        assert trio.current_time() - start < 2.0  # nobody waits for mDNS to be up: 0.75 s each
        with trio.fail_after(20):
            assert await anext(a.watch()) == PeerUp(b.peer)
            assert await anext(b.watch()) == PeerUp(a.peer)
        assert (a.connected(), b.connected()) == ([b.peer], [a.peer])
        assert c.connected() == c.addresses_of(a.peer) == a.addresses_of(c.peer) == []
        assert a.peers()[0].connections == 1
        start = trio.current_time()
        nursery.cancel_scope.cancel()
    assert trio.current_time() - start < 2.0
