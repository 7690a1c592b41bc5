"""The store between real daemons, through the command line and the Python clients."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import aclosing, closing
from pathlib import Path

import pytest
import trio

import shoal
from shoal import ApiError
from tests.daemon.processes import SHOAL, Daemon, clean_environment, daemons, run

PATIENCE_S = 20.0


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Daemon]]:
    """Two daemons that know each other."""
    with daemons(tmp_path_factory.mktemp("store"), "ann", "bob") as made:
        ann, bob = made
        ann.start()
        bob.start("--join", ann.client.ticket())
        for daemon in made:
            daemon.client.wait(peers=1, timeout_s=PATIENCE_S)
        yield made


def until(is_so: Callable[[], bool]) -> None:
    """Ask again and again until it is so."""
    deadline = time.monotonic() + PATIENCE_S
    while not is_so():
        assert time.monotonic() < deadline, "it did not come to be so"


def shows(daemon: Daemon, key: str, value: object, namespace: str = "kv") -> None:
    """Wait until a daemon shows a value at a key."""

    def is_so() -> bool:
        try:
            return bool(daemon.client.store.get(key, namespace=namespace).value == value)
        except ApiError as error:
            if error.code != "not_found":
                raise
            return False

    until(is_so)


def done(daemon: Daemon, *args: str) -> str:
    """Run a command that must succeed; return what it printed."""
    found = run(daemon.home, "store", *args)
    assert found.returncode == 0, found.stderr
    return found.stdout


def piped(daemon: Daemon, data: bytes, *args: str) -> bytes:
    """Run a command with bytes on its standard input; return those on its standard output."""
    return subprocess.run(
        [*SHOAL, "store", *args],
        input=data,
        env=clean_environment(SHOAL_HOME=str(daemon.home)),
        capture_output=True,
        check=True,
        timeout=PATIENCE_S,
    ).stdout


def test_what_one_writes_the_other_reads_as_it_was_written(two: list[Daemon]) -> None:
    ann, bob = two
    done(ann, "put", "plain/json", '{"lr": 0.5, "tags": ["a", null]}')
    done(ann, "put", "plain/text", "two words")
    done(ann, "put", "plain/number", "-5")
    done(ann, "put", "plain/quoted", "5", "--string")
    piped(ann, b"\x00\xff binary", "put", "plain/bytes", "-")
    shows(bob, "plain/bytes", b"\x00\xff binary")
    assert done(bob, "get", "plain/json") == '{"lr":0.5,"tags":["a",null]}\n'
    assert done(bob, "get", "plain/text") == "two words\n"
    assert json.loads(done(bob, "get", "plain/number", "--json"))["value"] == -5
    assert json.loads(done(bob, "get", "plain/quoted", "--json"))["value"] == "5"
    assert piped(bob, b"", "get", "plain/bytes") == b"\x00\xff binary"
    assert json.loads(done(bob, "get", "plain/bytes", "--json"))["value"] == {
        "$base64": "AP8gYmluYXJ5"
    }
    table = done(bob, "ls", "plain/").splitlines()
    assert [line.split()[:3] for line in table[1:]] == [
        ["plain/bytes", "register", "ann"],
        ["plain/json", "register", "ann"],
        ["plain/number", "register", "ann"],
        ["plain/quoted", "register", "ann"],
        ["plain/text", "register", "ann"],
    ]
    everything = done(bob, "get", "plain/text", "--all")
    assert ann.client.id().peer in everything
    assert "value    two words\n" in everything


def test_each_kind_merges_what_both_wrote(two: list[Daemon]) -> None:
    ann, bob = two
    assert done(ann, "incr", "kinds/count", "5") == "5\n"
    shows(bob, "kinds/count", 5)
    done(bob, "incr", "kinds/count", "-2")
    shows(ann, "kinds/count", 3)
    for element in ("milk", "bread", "7"):
        done(ann, "add", "kinds/set", element)
    shows(bob, "kinds/set", [7, "milk", "bread"])
    done(bob, "remove", "kinds/set", "milk")
    shows(ann, "kinds/set", [7, "bread"])
    done(ann, "add", "kinds/map", "ada", '{"gib": 24}')
    done(ann, "add", "kinds/map", "ada", '{"gib": 48}')
    shows(bob, "kinds/map", [["ada", {"gib": 48}]])
    assert done(bob, "get", "kinds/map") == 'ada\t{"gib":48}\n'
    done(ann, "put", "kinds/multi", "mine", "--multi")
    shows(bob, "kinds/multi", ["mine"])
    done(ann, "del", "kinds/set")
    until(lambda: run(bob.home, "store", "get", "kinds/set").returncode == 1)


def test_what_is_not_there_or_not_allowed_fails_with_a_reason(two: list[Daemon]) -> None:
    ann, bob = two
    for args, status, words in (
        (("get", "no/such/key"), 1, "nothing at 'no/such/key'"),
        (("del", "no/such/key"), 1, "nothing at"),
        (("remove", "no/such/key", "x"), 1, "no such element"),
        (("get", "x", "--ns", "nowhere"), 1, "no namespace is called 'nowhere'"),
        (("watch", "--ns", "nowhere"), 1, "no namespace is called 'nowhere'"),
        (("put", "two words", "x"), 2, "two words"),
        (("put", f"mine/@{bob.client.id().peer}", "x"), 2, "this node may not write it"),
        (("put", "x", "1", "--file", "y"), 2, "not both"),
        (("put", "x", "--file", "/no/such/file"), 2, "cannot read"),
        (("put", "x", "y", "--multi", "--ttl", "5s"), 2, "a lease cannot be"),
        (("sync", "nobody"), 1, "no member is called 'nobody'"),
        (("revoke", "kv", "00112233"), 1, "no grant"),
    ):
        found = run(ann.home, "store", *args)
        assert (found.returncode, found.stdout) == (status, ""), args
        assert words in found.stderr, args


def test_a_lease_ends_by_itself_and_the_watcher_hears_of_it(two: list[Daemon]) -> None:
    ann, bob = two
    done(ann, "put", "lease/data", "mine", "--ttl", "2s")
    seen = list[object]()
    with closing(bob.client.store.watch("lease/", now=True)) as changes:
        for change in changes:
            if change.item is None:
                break
            seen.append(change.item.value)
    assert set(seen) == {"mine"}
    assert run(bob.home, "store", "get", "lease/data").returncode == 1


def test_a_large_value_travels_as_a_blob(two: list[Daemon], tmp_path: Path) -> None:
    ann, bob = two
    data = os.urandom(300_000)
    (tmp_path / "weights").write_bytes(data)
    put = run(ann.home, "store", "put", "large/file", "--file", str(tmp_path / "weights"))
    assert (put.returncode, put.stdout) == (0, "")
    assert "kept as the blob ba" in put.stderr
    done(ann, "put", "large/text", "x" * 3000)
    until(
        lambda: [item.key for item in bob.client.store.ls("large/")] == ["large/file", "large/text"]
    )
    assert piped(bob, b"", "get", "large/file") == data
    done(bob, "get", "large/text", "--out", str(tmp_path / "out"))
    assert (tmp_path / "out").read_text() == "x" * 3000
    item = bob.client.store.get("large/file")
    assert (item.value, item.blob_bytes) == (None, len(data))
    assert bob.client.read(item.cid) == data


def test_a_file_of_any_size_is_read_by_the_daemon(two: list[Daemon], tmp_path: Path) -> None:
    ann, bob = two
    data = os.urandom(1024) * 7000  # more than a request takes
    (tmp_path / "model").write_bytes(data)
    done(ann, "put", "huge/model", "--file", str(tmp_path / "model"))
    until(lambda: [item.key for item in bob.client.store.ls("huge/")] == ["huge/model"])
    done(bob, "get", "huge/model", "--out", str(tmp_path / "copy"))
    assert (tmp_path / "copy").read_bytes() == data
    item = ann.client.store.put_file("huge/again", tmp_path / "model", ttl_s=60)
    assert (item.kind, item.blob_bytes, item.cid) == (
        "lease", len(data), bob.client.store.get("huge/model").cid,
    )  # fmt: skip
    for path, words in ((tmp_path, "is no file"), (tmp_path / "nothing", "is no file")):
        with pytest.raises(ApiError, match=words):
            ann.client.store.put_file("huge/x", path)
    too_much = subprocess.run(
        [*SHOAL, "store", "put", "huge/piped", "-"],
        input=data,
        env=clean_environment(SHOAL_HOME=str(ann.home)),
        capture_output=True,
    )
    assert too_much.returncode == 1
    assert b"put KEY --file FILE" in too_much.stderr


def test_watch_prints_what_is_there_then_each_change_and_ends_cleanly(two: list[Daemon]) -> None:
    ann, bob = two
    done(ann, "put", "watched/a", "1")
    shows(bob, "watched/a", 1)
    process = subprocess.Popen(
        [*SHOAL, "store", "watch", "watched/", "--now", "--json"],
        env=clean_environment(SHOAL_HOME=str(bob.home)),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        first = json.loads(process.stdout.readline())
        assert (first["key"], first["item"]["value"], first["item"]["name"]) == (
            "watched/a", 1, "ann",
        )  # fmt: skip
        done(ann, "put", "watched/b", "x")
        assert json.loads(process.stdout.readline())["item"]["value"] == "x"
        done(ann, "del", "watched/a")
        assert json.loads(process.stdout.readline()) == {"key": "watched/a", "item": None}
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=PATIENCE_S)
        assert (process.returncode, said.strip()) == (130, "")
    finally:
        process.kill()
        process.communicate()


def test_who_may_write_is_granted_and_taken_back(two: list[Daemon]) -> None:
    ann, bob = two
    made = json.loads(done(ann, "ns", "create", "results", "--write", "list", "--json"))
    assert (made["owner"], made["write"]) == (ann.client.id().peer, "list")
    until(lambda: any(one.name == "results" for one in bob.client.store.namespaces()))
    refused = run(bob.home, "store", "put", "bob/loss", "1.5", "--ns", "results")
    assert refused.returncode != 0
    assert "grant" in refused.stderr
    granted = done(ann, "grant", "results", "bob", "--prefix", "bob/", "--until", "1h").strip()
    until(lambda: len(bob.client.store.grants("results")) == 1)
    done(bob, "put", "bob/loss", "1.5", "--ns", "results")
    shows(ann, "bob/loss", 1.5, "results@ann")
    assert run(bob.home, "store", "put", "ann/loss", "1", "--ns", "results").returncode != 0
    done(ann, "revoke", "results", granted[:12])
    until(lambda: bob.client.store.grants("results")[0].revoked)
    assert run(bob.home, "store", "put", "bob/loss", "9", "--ns", "results").returncode != 0
    assert done(ann, "get", "bob/loss", "--ns", made["id"][:10]) == "1.5\n"
    row = done(ann, "ns", "grants", "results").splitlines()[1].split()
    assert (row[0], row[1], row[3], row[-1]) == (granted[:16], "bob", "bob/", "revoked")
    done(ann, "revoke", "results", granted[:12], "--discard")
    assert run(ann.home, "store", "get", "bob/loss", "--ns", "results").returncode == 1
    assert "results@ann" in done(bob, "ns", "ls")
    assert made["id"] in done(bob, "ns", "show", "results")


def test_a_third_party_checks_a_proof_with_the_id_alone(two: list[Daemon], tmp_path: Path) -> None:
    ann, _ = two
    done(ann, "put", "proven/lr", "0.25")
    for key in ("proven/lr", "proven/nothing"):
        done(ann, "prove", key, "--out", str(tmp_path / key.partition("/")[2]))
    nowhere, namespace = tmp_path / "no-daemon", ann.client.store.namespace("kv")
    holds = run(nowhere, "store", "verify", str(tmp_path / "lr"), "--ns-id", namespace.id)
    assert holds.returncode == 0, holds.stderr
    assert "register: 0.25" in holds.stdout
    assert ann.client.id().peer in holds.stdout
    assert "not proven:" in holds.stdout
    absent = run(nowhere, "store", "verify", str(tmp_path / "nothing"), "--ns-id", namespace.id)
    assert (absent.returncode, "shows       nothing" in absent.stdout) == (0, True)
    proof = bytearray((tmp_path / "lr").read_bytes())
    proof[len(proof) // 2] ^= 1
    (tmp_path / "forged").write_bytes(proof)
    lr, forged = str(tmp_path / "lr"), str(tmp_path / "forged")
    for args in (
        (forged, "--ns-id", namespace.id),
        (lr, "--ns-id", "00" * 32),
        (lr, "--ns-id", namespace.id, "--root", "00" * 32),
    ):
        wrong = run(nowhere, "store", "verify", *args)
        assert (wrong.returncode, wrong.stdout) == (1, ""), args
        assert "the proof is wrong" in wrong.stderr, args
    store = ann.client.store
    verdict = store.verify((tmp_path / "lr").read_bytes())
    assert verdict.item is not None
    assert (verdict.item.value, verdict.attester) == (0.25, ann.client.id().peer)
    with pytest.raises(ApiError, match="the proof is wrong") as caught:
        store.verify(bytes(proof), namespace=namespace.id)
    assert caught.value.code == "wrong_proof"


def test_after_a_sync_the_roots_are_equal_and_the_log_says_who_wrote(two: list[Daemon]) -> None:
    ann, bob = two
    done(bob, "put", "logged/x", "1")
    report = json.loads(done(ann, "sync", "bob", "--json"))
    assert (report[0]["name"], report[0]["error"]) == ("bob", "")
    until(lambda: done(ann, "root") == done(bob, "root"))
    assert "kv" in done(ann, "root", "--all")
    (line,) = (json.loads(one) for one in done(ann, "log", "logged/", "--json").splitlines())
    assert (line["kind"], line["name"], line["value"], line["counts"]) == (
        "register",
        "bob",
        1,
        True,
    )
    assert done(ann, "log", "logged/").splitlines()[1].split()[2:7] == [
        "bob", str(line["seq"]), "register", "logged/x", "-",
    ]  # fmt: skip
    page = ann.client.call("GET", "/metrics", reply=bytes).decode()
    assert "\nshoal_store_writable 1.0\n" in page


async def test_the_client_for_trio_does_the_same(two: list[Daemon]) -> None:
    ann, bob = two
    store = shoal.connect_async(ann.home).store
    other = shoal.connect_async(bob.home).store
    with trio.fail_after(PATIENCE_S):
        await store.put("trio/value", [b"\x00", 1])
        async with aclosing(other.watch("trio/", now=True)) as changes:
            async for change in changes:
                assert change.item is not None
                assert (change.key, change.item.value) == ("trio/value", [b"\x00", 1])
                break
        assert await store.incr("trio/count", 2) == 2
        item = await store.add("trio/set", b"raw")
        assert item.value == [b"raw"]
        await store.remove("trio/set", b"raw")
        await store.delete("trio/count")
        assert [item.key async for item in store.ls("trio/")] == ["trio/value"]
        assert len(await store.root()) == 32
        assert (await store.verify(await store.prove("trio/value"))).key == "trio/value"
        assert [line.kind for line in await store.log("trio/value")] == ["register"]
        with pytest.raises(ApiError, match="nothing at"):
            await store.get("trio/count")


def test_a_snapshot_is_restored_and_what_came_later_comes_back(
    two: list[Daemon], tmp_path: Path
) -> None:
    ann, bob = two
    done(ann, "put", "copied/before", "1")
    done(ann, "snapshot", str(tmp_path / "backup.db"))
    again = run(ann.home, "store", "snapshot", str(tmp_path / "backup.db"))
    assert (again.returncode, "is there already" in again.stderr) == (2, True)
    done(ann, "put", "copied/after", "2")
    shows(bob, "copied/after", 2)
    running = run(ann.home, "store", "restore", str(tmp_path / "backup.db"))
    assert (running.returncode, "is in use by the daemon" in running.stderr) == (1, True)
    ann.kill()
    kept = json.loads(done(ann, "restore", str(tmp_path / "backup.db"), "--json"))["kept"]
    assert Path(kept).exists()
    ann.start()
    assert ann.client.store.get("copied/before").value == 1
    shows(ann, "copied/after", 2)
    done(ann, "put", "copied/new", "3")
    shows(bob, "copied/new", 3)
    assert [one.faults for one in bob.client.store.namespaces() if one.faults] == []
