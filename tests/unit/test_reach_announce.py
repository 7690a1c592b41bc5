"""What a node tells of itself, and in which order."""

import msgspec
import pytest

from node.host.addresses import Address
from node.reach.announce import FIRST_INTERFACES, in_order
from node.reach.offer import ReachOffer, read_offer

LAN = [Address("ip4", f"192.168.{number}.2", 4001) for number in range(20)]
RELAYED = [f"/ip4/11.{net}.0.1/tcp/4001/p2p/R/p2p-circuit/p2p/US" for net in (1, 2)]


def order(own: list[Address], *, others: list[str] | None = None, source: str = "") -> list[str]:
    found = in_order(own, [(one, "mapped") for one in others or []], RELAYED, [source, None])
    return [one.address for one in found]


def test_many_interfaces_do_not_crowd_out_relay_addresses() -> None:
    told = order(LAN)
    assert [told.index(one) for one in RELAYED] == [FIRST_INTERFACES, FIRST_INTERFACES + 1]
    assert len(told) == len(LAN) + len(RELAYED)


def test_the_interface_towards_the_world_comes_first() -> None:
    assert order(LAN, source="192.168.7.2")[0] == "/ip4/192.168.7.2/tcp/4001"


def test_loopback_is_told_only_by_who_has_nothing_else() -> None:
    loopback = [Address("ip4", "127.0.0.1", 1), Address("ip6", "::1", 1)]
    assert order([loopback[0], LAN[0], loopback[1]]) == [str(LAN[0]), *RELAYED]
    assert order(loopback) == [*(str(one) for one in loopback), *RELAYED]


def test_global_addresses_come_before_private_ones_and_reached_ones_before_all() -> None:
    told = order([*LAN, Address("ip6", "2a01:4f8::1", 4001)], others=["/ip4/11.9.0.1/tcp/4001"])
    assert told[:2] == ["/ip4/11.9.0.1/tcp/4001", "/ip6/2a01:4f8::1/tcp/4001"]


def test_an_address_is_told_once() -> None:
    assert len(order(LAN[:1], others=[str(LAN[0]), str(LAN[0])])) == 1 + len(RELAYED)


def test_an_offer_goes_through_a_lease() -> None:
    offer = ReachOffer("public", 100)
    assert read_offer({"reach": msgspec.to_builtins(offer), "serve": True}) == offer


@pytest.mark.parametrize(
    "said",
    [None, 7, "public", [], {"state": "good"}, {"relay": -1}, {"relay": 1 << 20}],
)
def test_an_offer_that_makes_no_sense_is_none(said: object) -> None:
    assert read_offer({"reach": said}) is None


def test_newer_versions_may_say_more() -> None:
    assert read_offer({"reach": {"state": "mapped", "colour": 3}}) == ReachOffer("mapped")
