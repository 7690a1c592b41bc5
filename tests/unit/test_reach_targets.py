"""Whom a hole punch sends packets to: what a peer may make us do, and the order that works."""

import ipaddress
from dataclasses import replace

import pytest

from node.host.addresses import Address, parse_address
from node.reach.behaviour import PORT_MAX, Behaviour, next_ports
from node.reach.targets import (
    MACHINES_MAX,
    NEAR_MAX,
    PORT_MIN,
    PREDICTED,
    aim,
    choose,
    predicted_of,
)

HOME = [ipaddress.ip_interface("192.168.1.7/24"), ipaddress.ip_interface("127.0.0.1/8")]
OWN = [
    parse_address("/ip4/192.168.1.7/tcp/4001"),
    parse_address("/ip4/11.1.0.2/tcp/4001"),
    parse_address("/ip6/2606:4700::7/tcp/4001"),
]


def places(*texts: str) -> list[Address]:
    """Addresses from HOST:PORT."""
    found: list[Address] = []
    for text in texts:
        host, _, port = text.rpartition(":")
        found.append(Address("ip6" if ":" in host else "ip4", host, int(port)))
    return found


def guesses(host: str = "11.2.0.2", first: int = 20_000, step: int = 1) -> list[Address]:
    """What a peer behind a sequential router tells."""
    return [Address("ip4", host, first + step * i) for i in range(PREDICTED)]


@pytest.mark.parametrize(
    "place",
    [
        "127.0.0.1:4002",
        "::1:4002",
        "::ffff:127.0.0.1:4002",
        "224.0.0.1:4002",
        "255.255.255.255:4002",
        "0.0.0.0:4002",
        "169.254.1.1:4002",
        "fe80::1:4002",
        "192.168.1.255:4002",  # everybody at home
        "192.168.1.0:4002",
        "192.168.1.7:4002",  # ourselves, another service
        "11.1.0.2:4001",  # ourselves, seen from outside
        "10.0.0.5:4002",  # private, not in our network
        "192.168.2.5:4002",
        "100.64.0.3:4002",  # a carrier's network that we are not in
        "64:ff9b::c0a8:105:4002",  # 192.168.1.5 through a translator
        "2002:c0a8:105::1:4002",
        "11.2.0.2:25",
        "11.2.0.2:22",
        "11.2.0.2:0",
    ],
)
def test_nothing_is_sent_there(place: str) -> None:
    assert choose(places(place), OWN, HOME) == []


def test_machines_at_hand_come_first_then_what_is_predicted_then_the_rest() -> None:
    told = places("11.2.0.2:4001", "192.168.1.9:4001", "2606:4700::9:4001") + guesses()
    near, outside, ip6 = told[1], told[0], told[2]
    assert choose(told, OWN, HOME) == [near, *guesses(), outside, ip6]


def test_two_behind_one_router_may_meet_at_its_public_address() -> None:
    assert choose(places("11.1.0.2:4009"), OWN, HOME) == places("11.1.0.2:4009")


def test_customers_of_one_carrier_meet_in_its_network() -> None:
    mapped = [*OWN, *places("100.64.0.2:4001")]
    assert choose(places("100.64.0.3:4001"), mapped, HOME) == places("100.64.0.3:4001")


def test_only_what_we_listen_on_is_tried() -> None:
    assert choose(places("2606:4700::9:4001"), OWN[:2], HOME) == []


def test_a_peer_cannot_make_us_scan() -> None:
    many = [Address("ip4", f"11.3.0.{i}", 5000) for i in range(1, 60)]
    assert len(choose(many, OWN, HOME)) == MACHINES_MAX
    neighbours = [Address("ip4", f"192.168.1.{i}", 5000) for i in range(20, 60)]
    assert len(choose(neighbours, OWN, HOME)) == NEAR_MAX
    ports = [Address("ip4", "11.3.0.1", 5000 + 7 * i) for i in range(60)]
    assert len(choose(ports, OWN, HOME)) <= 32


def test_what_is_predicted_is_told_from_what_was_observed() -> None:
    for step in (1, 2, -1):
        told = places("11.2.0.2:19999") + guesses(step=step)
        assert list(predicted_of(told)) == guesses(step=step)
    assert not predicted_of(places("11.2.0.2:4001", "11.2.0.2:4002"))
    assert not predicted_of(guesses()[:-1] + places("11.4.0.2:4001"))
    assert not predicted_of(guesses()[:-1] + places("11.2.0.2:9"))


def test_aiming_stays_with_what_may_be_connected_to() -> None:
    backwards = guesses(first=22 + 2**16, step=-4000)
    wrapped = [replace(one, port=one.port % 2**16) for one in reversed(backwards)]
    assert wrapped[-1].port < PORT_MIN
    assert predicted_of(wrapped) == wrapped
    targets = choose(wrapped, OWN, HOME)
    assert min(one.port for one in aim(targets, wrapped)) >= PORT_MIN
    assert len(set(aim(guesses(), guesses()))) == 1


def test_the_next_ports_of_a_sequential_router_count_up_and_end() -> None:
    seen = Address("ip4", "11.1.0.2", 4000)
    counting = Behaviour("sequential", False, 2, step=3)
    assert [one.port for one in next_ports(seen, counting, 3)] == [4003, 4006, 4009]
    last = Address("ip4", "11.1.0.2", PORT_MAX - 4)
    assert [one.port for one in next_ports(last, counting, 3)] == [PORT_MAX - 1]
