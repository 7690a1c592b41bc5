"""The DHT between real daemons: a restart without a bootstrap peer, modes, damaged snapshots."""

import os
import signal
import stat
import time
from collections.abc import Callable
from pathlib import Path

from tests.daemon.processes import Daemon, daemons

PATIENCE_S = 15.0


def wait_for(what: Callable[[], bool], patience_s: float = PATIENCE_S) -> bool:
    """Ask again and again until it is so."""
    end = time.monotonic() + patience_s
    while not what():
        if time.monotonic() > end:
            return False
        time.sleep(0.1)
    return True


def swarm_of(first: Daemon, *others: Daemon) -> None:
    """Start them; the others know the first one's ticket only."""
    first.start()
    ticket = first.client.ticket()
    for each in others:
        each.start("--join", ticket)


def test_a_restart_finds_the_swarm_again_without_its_bootstrap_peer(tmp_path: Path) -> None:
    with daemons(tmp_path, "a", "b", "c", "d") as (a, b, c, d):
        swarm_of(a, b, c, d)
        assert wait_for(lambda: len(b.client.peers()) == 3)
        assert wait_for(lambda: "dht.bootstrap" in b.said)
        began = time.monotonic()
        os.kill(b.pid, signal.SIGTERM)
        assert b.wait() == 0
        assert time.monotonic() - began < 5
        snapshot = b.home / "dht.msgpack"
        assert stat.S_IMODE(snapshot.stat().st_mode) == 0o600
        a.kill()
        # Leases in the store name members, too; and it must not be found where it was.
        for path in (b.home / "peers.json", b.home / "ports.json", *b.home.glob("store.db*")):
            path.unlink()
        b.start()
        there = {c.client.status().peer, d.client.status().peer}
        assert wait_for(lambda: {peer.peer for peer in b.client.peers()} == there)
        assert "dht.rejoined" in b.said


def test_a_damaged_snapshot_is_reported_and_left_out(tmp_path: Path) -> None:
    with daemons(tmp_path, "a") as (a,):
        a.start()
        a.client.down()
        a.wait()
        (a.home / "dht.msgpack").write_bytes(b"\xc1 not MessagePack")
        a.start()
        assert a.client.status().state == "ready"
        assert "dht.snapshot_unreadable" in a.said


def test_a_public_dht_in_a_closed_swarm_is_refused_in_words(tmp_path: Path) -> None:
    with daemons(tmp_path, "a") as (a,):
        a.environment["SHOAL_DHT__PUBLIC"] = "true"
        a.launch()
        assert a.wait() == 2
        assert "[dht] public" in a.said
        assert "Traceback" not in a.said
