"""Address groups: which addresses are one network's, and that no disguise gets around it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dht.diversity import UNPLACED, claimed_group, diverse, group_of
from dht.key import Key
from dht.messages import Contact
from wire.ids import PeerId


def contact(name: str, *addrs: str) -> Contact:
    return Contact(PeerId(name), Key(hash(name)), addrs)


@pytest.mark.parametrize(
    ("address", "group"),
    [
        ("/ip4/5.9.1.200/tcp/4001", "5.9.1.0/24"),
        ("/ip4/5.9.1.3/udp/4001/quic-v1", "5.9.1.0/24"),
        ("/ip4/203.0.113.7/tcp/1/p2p/12D3KooW", "203.0.113.0/24"),
        ("/ip6/2a01:4f8:1:2::3/tcp/1", "2a01:4f8:1::/48"),
    ],
)
def test_a_group_is_the_24_or_the_48(address: str, group: str) -> None:
    assert group_of(address) == group


@pytest.mark.parametrize(
    "wrapped", ["::ffff:5.9.1.77", "2002:509:14d::1", "2002:509:1ff:8::1", "64:ff9b::509:14d"]
)
def test_an_ipv4_address_inside_ipv6_is_in_the_group_of_the_ipv4_address(wrapped: str) -> None:
    assert group_of(f"/ip6/{wrapped}/tcp/1") == "5.9.1.0/24"


@pytest.mark.parametrize(
    "address",
    [
        *("/ip4/127.0.0.1/tcp/1", "/ip4/10.1.2.3/tcp/1", "/ip4/172.31.0.1/tcp/1"),
        *("/ip4/192.168.1.9/tcp/1", "/ip4/169.254.3.4/tcp/1", "/ip4/100.64.0.1/tcp/1"),
        *("/ip6/::1/tcp/1", "/ip6/fd00::1/tcp/1", "/ip6/fe80::1/tcp/1"),
        "/ip6/::ffff:10.0.0.1/tcp/1",
    ],
)
def test_private_and_loopback_addresses_have_no_group(address: str) -> None:
    assert group_of(address) is None


@pytest.mark.parametrize(
    "address",
    [
        *("", "/", "ip4/10.0.0.1/tcp/1", "/ip4/10.0.0.1", "/ip4/10.0.0.256/tcp/1"),
        *("/dns4/example.org/tcp/1", "/ip6zone/eth0/ip6/fe80::1/tcp/1", "/ip4//tcp/1"),
        "/ip4/10.0.0.1/tcp/1/p2p/12D3KooW/p2p-circuit",  # a relay on a LAN is no place of its own
        "/ip4/5.9.1.1/tcp/1/p2p/12D3KooW/p2p-circuit/p2p/12D3KooX",
    ],
)
def test_what_has_no_ip_address_of_its_own_shares_one_group(address: str) -> None:
    assert group_of(address) == UNPLACED


@given(st.text(max_size=80) | st.text("/ip46:.0123abf", max_size=80).map(lambda it: f"/ip6/{it}"))
def test_any_text_has_a_group_or_is_private(address: str) -> None:
    group = group_of(address)
    assert group is None or group == UNPLACED or group.endswith(("/24", "/48"))


def test_a_contact_is_where_it_says_and_a_private_address_hides_nothing() -> None:
    public, private = "/ip4/5.9.1.1/tcp/1", "/ip4/10.0.0.1/tcp/1"
    relayed = f"{public}/p2p/12D3KooW/p2p-circuit"
    assert claimed_group(contact("a", private)) is None
    assert claimed_group(contact("a", private, public)) == "5.9.1.0/24"
    assert claimed_group(contact("a", relayed, public)) == "5.9.1.0/24"
    assert claimed_group(contact("a", private, relayed)) == UNPLACED
    assert claimed_group(contact("a")) == UNPLACED


def test_two_of_a_network_are_taken_in_order_and_any_number_without_one() -> None:
    def at(name: str, host: str) -> Contact:
        return contact(name, f"/ip4/{host}/tcp/1")

    hosts = ["5.9.1.1", "5.9.1.2", "5.9.1.3", "10.0.0.1", "10.0.0.2", "10.0.0.3", "6.1.1.1"]
    contacts = [at(str(number), host) for number, host in enumerate(hosts)]
    assert [one.peer for one in diverse(contacts, 9)] == ["0", "1", "3", "4", "5", "6"]
    assert [one.peer for one in diverse(contacts, 3)] == ["0", "1", "3"]
    assert [one.peer for one in diverse(contacts, 9, per_group=1)] == ["0", "3", "4", "5", "6"]
    assert [one.peer for one in diverse(contacts, 9, lambda one: one.addrs[0][:8])] == [
        *("0", "1", "3", "4", "6"),
    ]


def test_no_more_is_read_than_is_needed() -> None:
    endless = (contact(str(number), "/ip4/10.0.0.1/tcp/1") for number in iter(int, 1))
    assert len(diverse(endless, 5)) == 5
