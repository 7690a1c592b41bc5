"""The DHT between real hosts and daemons: modes, a restart without a bootstrap peer, bad files."""

import os
import secrets
import signal
import stat
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import trio

from dht.values import head_name
from node.finding import Finding
from node.host.service import LibP2pHost
from node.reach.service import Reach, ReachOptions
from node.tickets import fresh_swarm
from tests.daemon.hosts import ANY_PORT, KEY
from tests.daemon.kad_ends import PUBLIC, make_end, place_of
from tests.daemon.processes import SHOAL, Daemon, clean_environment, daemons, run
from wire.clock import SystemClock
from wire.ids import Signer

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


async def start_node(
    nursery: trio.Nursery, folder: Path, *, is_public: bool = False
) -> tuple[LibP2pHost, Reach, Finding]:
    """A host with nothing but reach and the DHT, wired as the daemon does it."""
    seed, key = secrets.token_bytes(32), None if is_public else KEY
    host = LibP2pHost(seed, key, [ANY_PORT])
    reach = Reach(host, list, ReachOptions(port_mapping=False))
    finding = Finding(
        *(host, reach, Signer(seed), SystemClock()),
        swarm=key,
        is_public=is_public,
        file=folder / f"{host.peer}.msgpack",
    )
    for part in (host, finding):
        await nursery.start(part.run)

    async def follow() -> None:
        async for event in host.watch():
            finding.peer_up(event.peer)

    nursery.start_soon(follow)
    return host, reach, finding


async def until(what: Callable[[], bool]) -> None:
    with trio.fail_after(PATIENCE_S):
        while not what():  # noqa: ASYNC110
            await trio.sleep(0.02)


async def test_who_cannot_be_dialled_is_a_client_until_it_can(
    tmp_path: Path, nursery: trio.Nursery
) -> None:
    (a, _, fa), (b, _, fb), (c, reach, fc) = [await start_node(nursery, tmp_path) for _ in range(3)]
    for host in (b, c):
        await host.connect(a.addresses()[0])
    await until(lambda: fa.dht.contacts == fb.dht.contacts == fc.dht.contacts == 2)
    await fc.dht.put_head("mine", b"1")
    reach.on_verdict("relayed")
    assert not fc.dht.is_server
    assert (await fb.dht.put_head("a", b"2")).kept == 1  # a's
    assert (await fc.dht.provide(b"cid")).kept == 2
    found = await fc.dht.get(head_name(b.peer, "a"))
    assert [value.data for value in found] == [b"2"]
    reach.on_verdict("mapped")
    assert fc.dht.is_server
    await fc.dht.bootstrap()
    await until(lambda: c.peer in {row.peer for row in fb.dht.view().rows})
    assert (await fb.dht.put_head("a", b"3")).kept == 2


async def test_a_public_server_of_another_kind_that_dials_us_comes_into_the_table(
    tmp_path: Path, nursery: trio.Nursery
) -> None:
    host, _, finding = await start_node(nursery, tmp_path, is_public=True)
    server, client = [make_end(protocol=PUBLIC, is_server=is_it) for is_it in (True, False)]
    for end in (server, client):
        end.streams._own = lambda: None  # others send no record of theirs
        await nursery.start(end.host.run)
        await nursery.start(end.streams.run)
        await end.host.connect(host.addresses()[0])
    await until(lambda: finding.dht.contacts == 1)
    (row,) = finding.dht.view().rows
    assert (row.peer, row.address) == (server.host.peer, place_of(server))
    assert not client.asked


def test_a_restart_finds_the_swarm_again_without_its_bootstrap_peer(tmp_path: Path) -> None:
    with daemons(tmp_path, "a", "b", "c") as (a, b, c):
        swarm_of(a, b, c)
        assert wait_for(lambda: len(b.client.peers()) == 2)
        assert wait_for(lambda: b.client.dht.table().contacts == 2)  # c, too, is in the snapshot
        snapshot = b.home / "dht.msgpack"
        for key in ("/told", "/withdrawn"):
            b.client.dht.provide(key)
            assert key.encode() in snapshot.read_bytes()  # before it is answered
        b.client.dht.withdraw("/withdrawn")
        assert b"/withdrawn" not in snapshot.read_bytes()
        began = time.monotonic()
        os.kill(b.pid, signal.SIGTERM)
        assert b.wait() == 0
        assert time.monotonic() - began < 5
        assert stat.S_IMODE(snapshot.stat().st_mode) == 0o600
        a.kill()
        # Leases in the store name members, too; and it must not be found where it was.
        for path in (b.home / "peers.json", b.home / "ports.json", *b.home.glob("store.db*")):
            path.unlink()
        b.start()
        there = c.client.status().peer
        assert wait_for(lambda: [each.peer for each in b.client.peers()] == [there])
        assert "dht.rejoined" in b.said
        assert wait_for(lambda: b.client.dht.table().provided_first == ["/told"])


def test_members_of_a_run_say_in_the_dht_where_they_are(tmp_path: Path) -> None:
    script = tmp_path / "nap.py"
    script.write_text("import time; time.sleep(60)\n")
    with daemons(tmp_path, "a", "b") as (a, b):
        swarm_of(a, b)

        def places() -> list[object]:
            values = b.client.dht.get("/shoal/multi/run/nap").values
            return [msgspec.msgpack.decode(one.data)[0] for one in values]

        log = subprocess.Popen(
            [*SHOAL, "train", str(script), "--name", "nap"],
            env=clean_environment(SHOAL_HOME=str(a.home)),
            stdout=subprocess.DEVNULL,
        )
        try:
            own = [one.rpartition("/p2p/")[0] for one in a.client.status().addresses]
            assert wait_for(lambda: places() == [own])
        finally:
            run(a.home, "run", "stop", "nap")
            log.wait(10)
        assert wait_for(lambda: places() == [[]])


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
        assert a.wait(timeout_s=30) == 2
        assert "[dht] public" in a.said
        assert "Traceback" not in a.said


def test_an_open_swarm_may_be_public(tmp_path: Path) -> None:
    ticket = fresh_swarm("reef", is_open=True).text()
    with daemons(tmp_path, "a", "b") as (a, b):
        for each in (a, b):
            each.environment["SHOAL_DHT__PUBLIC"] = "true"
        a.start("--join", ticket)
        b.start("--join", a.client.ticket())
        assert wait_for(lambda: b.client.dht.table().contacts == 1)
        assert b.client.dht.table().protocol == "/ipfs/kad/1.0.0"
        assert a.client.dht.put("/shoal/head/latest", b"1").kept == 1
        found = b.client.dht.get(f"/shoal/head/{a.client.status().peer}/latest").values
        assert [one.data for one in found] == [b"1"]
