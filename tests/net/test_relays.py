"""Nodes that need relays, as real daemons behind routers: how they join, and who dies on the way."""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.reach_stage import DELAY_MS, RELAYS, Forged, Stage, stage
from node.tickets import parse_ticket
from tests.net.lab.lab import Site, missing

pytestmark = pytest.mark.skipif(missing() is not None, reason=str(missing()))

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


@pytest.mark.slow
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

        made.nodes["pub1"].kill()
        assert made.await_talk("b1", "a1", timeout_s=PATIENCE_S) is not None
        eventually(lambda: relays_of(made, "a1") == {"pub2"})
        made.up(["pub1"])  # the same node comes back: it is needed, and found
        eventually(lambda: relays_of(made, "a1") == set(RELAYS))

        node = made.nodes["a1"]
        assert isinstance(node, Forged)
        pid = node.forged_pid
        os.kill(pid, signal.SIGTERM)
        eventually(lambda: has_ended(pid), within_s=STOP_S)
