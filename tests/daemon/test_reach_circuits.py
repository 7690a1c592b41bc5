"""Circuits through a real relay, on loopback: they carry everything, and hold to their limits."""

from tests.daemon.circuits import ring
from tests.daemon.hosts import call, eventually


async def test_a_peer_is_reached_through_a_relay() -> None:
    async with ring() as net:
        a, b = net.hosts
        await net.reserve(1)
        await call(a, b, b"through a relay")
        (seen,) = [each for each in a.peers() if each.peer == b.peer]
        assert seen.path == "relayed"
        assert seen.address == f"{net.centre.addresses()[0]}/p2p-circuit"
        assert len(net.relay.view().circuits) == 1
        await a.disconnect(b.peer)
        await eventually(lambda: not net.relay.view().circuits)
