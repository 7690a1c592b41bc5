"""`shoal dht` and `client.dht` against real daemons: found by one what another has said."""

import json
import time
from pathlib import Path

import pytest
import trio

from shoal.async_client import connect_async
from shoal.dht_api import DhtKept, DhtValues
from shoal.errors import ApiError
from tests.daemon.processes import Daemon, daemons, run
from tests.daemon.test_finding import swarm_of, wait_for


def know_each_other(*nodes: Daemon) -> bool:
    return wait_for(lambda: all(one.client.dht.table().contacts == len(nodes) - 1 for one in nodes))


def test_what_one_daemon_says_another_finds(tmp_path: Path) -> None:
    with daemons(tmp_path, "a", "b", "c") as (a, b, c):
        swarm_of(a, b, c)
        assert know_each_other(a, b, c)
        _peers_are_looked_up(a, b)
        _provided_keys_are_found(a, b)
        _values_are_found(a, b, c)
        trio.run(_the_trio_client_says_the_same, a, b)
        _what_is_wrong_is_said(a)
        _figures_count(a)
        _values_survive_a_restart(b)


def _peers_are_looked_up(a: Daemon, b: Daemon) -> None:
    there = a.client.dht.lookup("b")
    assert (there.peer, there.name) == (b.client.id().peer, "b")
    assert any(one.startswith("/ip4/127.0.0.1/tcp/") for one in there.addresses)
    assert a.client.dht.lookup("a").addresses == a.client.id().addresses
    near = a.client.dht.lookup("/fleet/gpu", paths=4, trace=True)
    assert {one.name for one in near.nearest} == {"b", "c"}
    assert near.effort.hops is not None
    assert {hop.outcome for hop in near.effort.hops} == {"answered"}
    traced = run(a.home, "dht", "lookup", "b", "--trace")
    assert traced.stdout.startswith("/ip4/")
    assert "OUTCOME" in traced.stderr


def _provided_keys_are_found(a: Daemon, b: Daemon) -> None:
    kept = json.loads(run(a.home, "dht", "provide", "/fleet/gpu", "--json").stdout)
    assert (kept["stores"], kept["kept"]) == (2, 2)
    (one,) = b.client.dht.providers("/fleet/gpu").providers
    assert (one.name, one.me, one.connected) == ("a", False, True)
    assert a.client.dht.table().provided_first == ["/fleet/gpu"]
    assert run(a.home, "dht", "provide", "/fleet/gpu", "--stop").returncode == 0
    again = run(a.home, "dht", "provide", "/fleet/gpu", "--stop")
    assert (again.returncode, "does not provide" in again.stderr) == (1, True)
    assert run(b.home, "dht", "providers", "/fleet/other").returncode == 1


def _values_are_found(a: Daemon, b: Daemon, c: Daemon) -> None:
    data = b"\x00\xff\nword"
    file = a.home.with_name("word")
    file.write_bytes(data)
    assert run(a.home, "dht", "put", "/shoal/head/best", "--file", str(file)).returncode == 0
    (one,) = b.client.dht.get("/shoal/head/a/best").values
    assert (one.data, one.author_name, one.seq > 0) == (data, "a", True)
    assert b.client.dht.get(one.key).values == [one]
    b.client.dht.put("/shoal/multi/here", b"b")
    c.client.dht.put("/shoal/multi/here", b"c")
    said = run(a.home, "dht", "get", "/shoal/multi/here").stdout
    assert sorted(said.splitlines()) == ["b: b", "c: c"]
    assert run(a.home, "dht", "get", "/shoal/multi/there").returncode == 1


async def _the_trio_client_says_the_same(a: Daemon, b: Daemon) -> None:
    at_a, at_b = connect_async(a.home).dht, connect_async(b.home).dht
    kept = await at_a.put("/shoal/head/trio", b"1")
    assert isinstance(kept, DhtKept)
    found = await at_b.get("/shoal/head/a/trio", paths=4)
    assert isinstance(found, DhtValues)
    assert [one.data for one in found.values] == [b"1"]
    await at_a.forget("/shoal/head/trio")
    assert "trio" not in str((await at_a.table()).published)
    await at_a.provide("/trio")
    assert [one.name for one in (await at_b.providers("/trio")).providers] == ["a"]
    await at_a.withdraw("/trio")
    assert (await at_b.lookup("a")).peer == a.client.id().peer


def _what_is_wrong_is_said(a: Daemon) -> None:
    dht = a.client.dht
    for call, code in (
        (lambda: dht.get("/nowhere"), "usage"),
        (lambda: dht.put("/pk/x", b""), "usage"),
        (lambda: dht.put("/shoal/head/x", bytes(8193)), "usage"),
        (lambda: dht.provide("bafy"), "usage"),
        (lambda: dht.lookup("carol"), "usage"),
        (lambda: dht.get("/shoal/head/carol/x"), "not_found"),
        (lambda: dht.forget("/shoal/head/never"), "not_found"),
    ):
        with pytest.raises(ApiError) as caught:
            call()
        assert (caught.value.code, bool(caught.value.hint)) == (code, True)


def _figures_count(a: Daemon) -> None:
    text = a.client.call("GET", "/metrics", reply=bytes).decode()
    figures = dict(line.rsplit(" ", 1) for line in text.splitlines() if line[0] != "#")
    assert float(figures["shoal_dht_contacts"]) == 2
    assert float(figures["shoal_dht_lookups_total"]) > 5
    assert float(figures["shoal_dht_lookup_hops_total"]) > 5
    assert float(figures['shoal_dht_requests_total{kind="GetValue"}']) > 0


def _values_survive_a_restart(b: Daemon) -> None:
    before = b.client.dht.table().published
    b.client.down()
    b.wait()
    b.start()
    assert [(one.key, one.bytes) for one in b.client.dht.table().published] == [
        (one.key, one.bytes) for one in before
    ]


def test_a_node_that_knows_nobody_says_so_and_keeps_its_word_for_later(tmp_path: Path) -> None:
    with daemons(tmp_path, "a") as (a,):
        a.start()
        with pytest.raises(ApiError) as caught:
            a.client.dht.get("/shoal/head/x")
        assert caught.value.code == "unavailable"
        done = run(a.home, "dht", "put", "/shoal/head/x", "data")
        assert (done.returncode, "as soon as there is one" in done.stderr) == (0, True)
        (own,) = a.client.dht.table().published
        assert (own.key.endswith("/x"), own.bytes) == (True, 4)
        began = time.monotonic()
        assert [one.data for one in a.client.dht.get("/shoal/head/x").values] == [b"data"]
        assert time.monotonic() - began < 5
