"""Peers that lie about our addresses, and machines with many: the reachability machine."""

from dataclasses import replace

import pytest

from node.host.addresses import Address
from tests.sim.routers import LISTENS, PORT, WAN, World, outside


@pytest.mark.parametrize("told", ["11.99.0.1", "10.0.0.1"])
def test_who_alone_could_tell_our_address_and_lied_does_not_keep_it_from_us(told: str) -> None:
    place = Address("ip4", WAN, PORT)
    liar, *honest = outside(3, ip6=False)
    dialled = [replace(liar, dialled=Address("ip4", told, PORT))]
    world = World("fullcone", dialled + [replace(one, dialled=place) for one in honest])
    world.routers["ip4"].forward(PORT, LISTENS)
    world.start()
    world.run(60.0)
    assert world.machine.verdict == "public"
    assert world.machine.addresses() == [LISTENS, place]


def test_many_containers_leave_room_for_what_is_seen_outside() -> None:
    world = World("fullcone", outside(3))
    bridges = [Address("ip4", f"172.{at}.0.1", PORT) for at in range(16, 32)]
    world.machine.interfaces([*bridges, LISTENS], world.now)
    world.meet()
    world.run(60.0)
    assert world.machine.verdict == "public"
    assert Address("ip4", WAN, PORT) in world.machine.addresses()
