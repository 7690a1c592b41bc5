"""Circuit relay v2 with js-libp2p: each of three roles played by it, the others by us."""

import trio

from node.host.service import LibP2pHost
from node.reach.circuit import CircuitClient
from node.reach.hop import RelayBudget
from node.reach.relay import Relay
from tests.daemon.hosts import call, exchange, make_host, running
from tests.interop.js_peer import js_peer, needs_js

pytestmark = needs_js
SIZE = 300_000  # more than a window


def a_host() -> tuple[LibP2pHost, CircuitClient]:
    host = make_host(key=None)
    return host, CircuitClient(host, is_closed=False)


async def test_js_is_reached_through_a_relay_of_ours() -> None:
    centre, (caller, _) = make_host(key=None), a_host()
    relay = Relay(centre, RelayBudget(), lambda: True)
    async with running(centre, caller), trio.open_nursery() as nursery, js_peer() as js:
        await nursery.start(relay.run)
        through = f"{centre.addresses()[0]}/p2p-circuit"
        await js.do("listen", address=through)
        assert f"{through}/p2p/{js.peer}" in await js.do("addresses")
        await caller.connect(f"{through}/p2p/{js.peer}")
        stream = await caller.open(caller.connected()[-1], "/echo", timeout_s=5)
        await exchange(stream, bytes(SIZE))
        assert stream.path == "relayed"
        assert relay.view().moved_bytes > 2 * SIZE
        nursery.cancel_scope.cancel()


async def test_js_reaches_us_through_a_relay_of_ours() -> None:
    centre, (called, client) = make_host(key=None), a_host()
    relay = Relay(centre, RelayBudget(), lambda: True)
    async with running(centre, called), trio.open_nursery() as nursery, js_peer() as js:
        await nursery.start(relay.run)
        await called.connect(centre.addresses()[0])
        found = await client.reserve(centre.peer)
        assert await js.do("dial", address=found.addresses[0]) == called.peer
        assert await js.do("echo", peer=called.peer, size=SIZE)
        assert any("p2p-circuit" in each for each in await js.do("remotes"))
        nursery.cancel_scope.cancel()


async def test_we_reach_each_other_through_a_relay_of_js() -> None:
    (caller, _), (called, client) = a_host(), a_host()
    async with running(caller, called), js_peer(relay=True) as js:
        await called.connect(js.addresses[0])
        found = await client.reserve(called.connected()[0])
        assert js.peer == found.relay
        caller.learn(called.peer, [found.addresses[0]])
        await call(caller, called)
        (seen,) = [each for each in caller.peers() if each.peer == called.peer]
        assert seen.path == "relayed"
