"""Nodes that need relays, as real daemons behind routers: how they join, and who dies meanwhile."""

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.reach_stage import DELAY_MS, RELAYS, Forged, Stage, stage
from node.host.addresses import parse_address
from node.tickets import parse_ticket
from tests.net.lab import portmap
from tests.net.lab.lab import Site, missing

pytestmark = pytest.mark.skipif(missing() is not None, reason=str(missing()))

DIAL = """
import socket, sys
try:
    socket.create_connection((sys.argv[1], int(sys.argv[2])), 1)
except OSError as error:
    print(type(error).__name__)
"""

STOP_S = 5.0
PATIENCE_S = 30.0  # a loaded machine takes its time; without a load all takes a few seconds
SITES = [  # between which no hole can be punched
    Site("a", "symmetric", delay_ms=DELAY_MS),
    Site("b", "cgnat-sym", delay_ms=DELAY_MS),
]


def eventually(condition: Callable[[], object], *, within_s: float = PATIENCE_S) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def relays_of(made: Stage, host: str) -> set[str]:
    """The hosts of the relays at which a node holds reservations."""
    peers = {node.peer: name for name, node in made.nodes.items()}
    return {peers[one.peer] for one in made.nodes[host].client.netcheck().relays}


def has_ended(pid: int) -> bool:
    """Whether a process is gone, or only waits for its forge to take note."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].startswith("Z")
    except FileNotFoundError:
        return True


def stop(made: Stage, host: str) -> None:
    """Ask a daemon to stop, as a service manager does."""
    node = made.nodes[host]
    assert isinstance(node, Forged)
    os.kill(node.forged_pid, signal.SIGTERM)
    eventually(lambda: has_ended(node.forged_pid), within_s=STOP_S)


def servers_of(made: Stage) -> set[str]:
    """The hosts of the DHT's servers."""
    modes = {name: node.client.dht.table().mode for name, node in made.nodes.items()}
    return {name for name, mode in modes.items() if mode == "server"}


def is_found(made: Stage, host: str, by: str) -> bool:
    """Whether the DHT tells one node where another is: at its relays, for who is a client."""
    found = made.nodes[by].client.dht.lookup(made.nodes[host].peer).addresses
    return any("p2p-circuit" in address for address in found)


def test_a_node_behind_a_router_is_joined_by_its_ticket_and_outlives_its_relay() -> None:
    with stage(SITES) as made:
        made.up(["a1"])
        eventually(lambda: relays_of(made, "a1") == set(RELAYS))
        made.ticket = made.nodes["a1"].client.ticket()
        told = parse_ticket(made.ticket).bootstrap
        assert sum("p2p-circuit" in address for address in told) == len(RELAYS)

        made.up(["b1"])
        assert made.await_talk("b1", "a1", timeout_s=PATIENCE_S) is not None
        assert made.judge("a1", "b1") == "relayed"
        eventually(lambda: relays_of(made, "b1") == set(RELAYS))
        eventually(lambda: servers_of(made) == set(RELAYS))
        relays = {made.nodes[name].peer for name in RELAYS}
        for node in made.nodes.values():
            table = node.client.dht.table()
            assert {one.peer for each in table.buckets for one in each.contacts} <= relays
        assert made.nodes["a1"].client.dht.put("/shoal/multi/lab", b"1").kept == len(RELAYS)
        assert [one.data for one in made.nodes["b1"].client.dht.get("/shoal/multi/lab").values]
        eventually(lambda: is_found(made, "a1", "b1"), within_s=2 * PATIENCE_S)

        made.nodes["pub1"].kill()
        assert made.await_talk("b1", "a1", timeout_s=PATIENCE_S) is not None
        eventually(lambda: relays_of(made, "a1") == {"pub2"})
        made.up(["pub1"])  # the same node comes back: it is needed, and found
        eventually(lambda: relays_of(made, "a1") == set(RELAYS))

        stop(made, "a1")


@pytest.mark.skipif(portmap.missing() is not None, reason=str(portmap.missing()))
def test_a_node_whose_router_forwards_a_port_is_dialled_there_and_relays_for_others() -> None:
    sites = [Site("a", "symmetric", portmap=True), Site("b", "symmetric")]
    with stage(sites, relays=["pub1"]) as made:
        made.up(["a1", "b1"], "--no-mdns")
        client = made.nodes["a1"].client
        eventually(lambda: client.netcheck().reachability == "mapped")
        (mapped,) = client.netcheck().port_mappings
        assert mapped.address in [
            one.address.rpartition("/p2p/")[0]
            for one in client.netcheck().announced
            if one.origin == "mapped"
        ]
        assert made.await_direct("b1", "a1", timeout_s=PATIENCE_S) is not None
        eventually(lambda: relays_of(made, "a1") == set())
        eventually(lambda: relays_of(made, "b1") == {"pub1", "a1"})
        stop(made, "a1")
        place = parse_address(mapped.address)
        done = made.lab.run("b1", [sys.executable, "-c", DIAL, place.host, str(place.port)])
        assert done.stdout == "TimeoutError\n"  # were it forwarded still, it would be refused


def test_a_hole_is_punched_again_after_the_router_has_forgotten_it() -> None:
    sites = [
        Site("a", "portrestricted", delay_ms=DELAY_MS),
        Site("b", "fw", delay_ms=DELAY_MS),
    ]
    with stage(sites) as made:
        made.up(["a1", "b1"])
        assert made.await_talk("a1", "b1", timeout_s=PATIENCE_S) is not None
        assert made.await_direct("a1", "b1", timeout_s=PATIENCE_S) is not None
        made.lab.nat_reboot("a")  # the other router, and both kernels, still know the connection
        assert made.await_talk("a1", "b1", timeout_s=PATIENCE_S) is not None
        assert made.await_direct("a1", "b1", timeout_s=PATIENCE_S) is not None
