"""Holes punched through routers, and what is in the way the second time."""

from collections.abc import Generator

import pytest

from node.host.addresses import Address
from tests.net.lab.lab import Lab, Site, missing
from tests.net.punching import DELAY_MS, PORT, Node, punch, time_to_direct, two

pytestmark = pytest.mark.skipif(missing() is not None, reason=str(missing()))


@pytest.fixture(scope="module")
def lab() -> Generator[Lab]:
    """Sites whose pairs need: a simultaneous open, predicted ports, a packet sent in advance."""
    plan = [
        Site("cone", "portrestricted", hosts=2, delay_ms=DELAY_MS),
        Site("refusing", "portrestricted", delay_ms=DELAY_MS, inbound="reject"),
        Site("next", "symseq", delay_ms=DELAY_MS),
        Site("after", "symseq", delay_ms=DELAY_MS, inbound="reject"),
        Site("any", "symmetric", delay_ms=DELAY_MS),
        Site("six", "symmetric", delay_ms=DELAY_MS, ipv6="firewalled"),
        Site("six-too", "symmetric", delay_ms=DELAY_MS, ipv6="firewalled"),
        Site("by-address", "restricted", delay_ms=DELAY_MS),
        Site("carried", "cgnat", carrier="x", delay_ms=DELAY_MS),
        Site("carried-too", "cgnat", carrier="x", delay_ms=DELAY_MS),
    ]
    with Lab(plan) as made:
        yield made


PAIRS = [
    ("cone1", "refusing1"),
    ("cone1", "next1"),
    ("after1", "next1"),
    ("any1", "by-address1"),
    ("six1", "six-too1"),
]


@pytest.mark.parametrize(("one", "other"), PAIRS + [pair[::-1] for pair in PAIRS])
async def test_they_meet(lab: Lab, one: str, other: str) -> None:
    for _ in range(2):  # a busy machine may miss the moment, and a node tries again, too
        if await time_to_direct(lab, one, other) is not None:
            return
    pytest.fail("they did not meet")


async def test_it_goes_again_though_routers_remember(lab: Lab) -> None:
    for _ in range(3):
        assert await time_to_direct(lab, "next1", "cone1") is not None


async def test_behind_one_router_they_meet_inside(lab: Lab) -> None:
    async with two(lab, "cone1", "cone2") as (a, b):
        assert await punch(a, b) is not None
        assert {host_of(a), host_of(b)} == {a.machine.ip, b.machine.ip}


async def test_behind_one_carrier_they_meet_in_its_network(lab: Lab) -> None:
    async with two(lab, "carried1", "carried-too1") as (a, b):
        for node in (a, b):
            router = lab.sites[str(node.machine.site)]
            node.mapped = [Address("ip4", router.wan_ip, PORT)]
        assert await punch(a, b) is not None
        assert host_of(a) == b.mapped[0].host


async def test_where_it_cannot_be_it_is_tried_for_a_while_and_left(lab: Lab) -> None:
    async with two(lab, "any1", "cone1") as (a, b):
        assert await punch(a, b, within_s=4.0) is None


def host_of(node: Node) -> str:
    """Where a node's connection leads."""
    (view,) = node.host.peers()
    return view.address.split("/")[2]
