"""Blobs between real daemons, by the commands that people type: add, get, kill -9, get again."""

import json
import os
import random
import signal
import subprocess
import time
from collections.abc import Generator
from pathlib import Path

import pytest
import trio

import shoal
from protocols.blobs.wire import CHUNK_BYTES
from shoal.blob_api import Blob, BlobList
from tests.daemon.processes import SHOAL, Daemon, clean_environment, daemons, run

SIZE = 60 * CHUNK_BYTES + 12_345


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Generator[tuple[Daemon, Daemon]]:
    """Two daemons that see each other."""
    with daemons(tmp_path_factory.mktemp("pair"), "a", "b") as (a, b):
        a.start()
        b.start("--join", a.client.ticket())
        b.client.wait(peers=1)
        yield a, b


def random_file(path: Path, size: int, seed: int) -> Path:
    path.write_bytes(random.Random(seed).randbytes(size))
    return path


def shell(daemon: Daemon, *args: str, ok: bool = True, stdin: bytes = b"") -> str:
    """Run a command in some other folder than the daemon's; return its standard output."""
    done = subprocess.run(
        [*SHOAL, *args],
        env=clean_environment(SHOAL_HOME=str(daemon.home)),
        input=stdin,
        capture_output=True,
        timeout=60,
    )
    assert (done.returncode == 0) == ok, done.stderr.decode()
    return done.stdout.decode() if ok else done.stderr.decode()


def blobs_of(daemon: Daemon) -> dict[str, Blob]:
    return {blob.cid: blob for blob in daemon.client.blobs().blobs}


def test_a_file_goes_from_one_to_the_other(pair: tuple[Daemon, Daemon], tmp_path: Path) -> None:
    a, b = pair
    path = random_file(tmp_path / "big", SIZE, 1)
    cid = shell(a, "add", str(path)).strip()
    assert cid == shell(a, "add", str(path), "--name", "other").strip()
    began = time.monotonic()
    out = tmp_path / "out"
    assert shell(b, "get", cid, "-o", str(out)) == f"{out}\n"
    assert time.monotonic() - began < 15
    assert out.read_bytes() == path.read_bytes()
    assert (blobs_of(a)[cid].pinned, blobs_of(b)[cid].pinned) == (True, False)
    assert blobs_of(a)[cid].name == "other"
    lines = [line.split() for line in shell(b, "blobs", "ls").splitlines()]
    assert lines[1] == [cid, "-", "file", "60.0", "MiB", "whole"]


def test_a_folder_with_json_progress(pair: tuple[Daemon, Daemon], tmp_path: Path) -> None:
    a, b = pair
    root = tmp_path / "in"
    (root / "sub").mkdir(parents=True)
    random_file(root / "sub" / "large", 3 * CHUNK_BYTES, 2)
    for number in range(30):
        random_file(root / f"small{number}", 1000 + number, number)
    lines = shell(a, "add", str(root), "--json", "--no-copy").splitlines()
    cid = json.loads(lines[-1])["blob"]["cid"]
    said = shell(b, "get", cid, "-o", str(tmp_path / "out"), "--json")
    documents = [json.loads(line) for line in said.splitlines()]
    assert [documents[0]["state"], documents[-1]["state"]] == ["fetching", "done"]
    assert documents[-1]["blob"]["kind"] == "folder"
    assert {each["peer"] for each in documents[-1]["providers"]} == {a.client.id().peer}
    for path in root.rglob("*"):
        if path.is_file():
            assert (tmp_path / "out" / path.relative_to(root)).read_bytes() == path.read_bytes()
    assert "sub/large" in shell(b, "blobs", "show", cid)
    assert "exists" in shell(b, "get", cid, "-o", str(tmp_path / "out"), ok=False)
    taken = blobs_of(a)[cid].held_bytes
    assert taken < 10_000  # no second copy
    (root / "small3").write_bytes(b"changed")
    assert "damaged" in shell(a, "blobs", "verify", ok=False)


def test_standard_input_ranges_and_standard_output(
    pair: tuple[Daemon, Daemon], tmp_path: Path
) -> None:
    a, b = pair
    data = random.Random(3).randbytes(9 * CHUNK_BYTES)
    cid = shell(a, "add", "-", "--name", "typed", stdin=data).strip()
    assert blobs_of(a)[cid].name == "typed"
    assert list((a.home / "blobs" / "tmp").iterdir()) == []
    start, stop = 4 * CHUNK_BYTES - 7, 4 * CHUNK_BYTES + 7
    part = tmp_path / "part"
    shell(b, "get", cid, "--range", f"{start}-{stop}", "-o", str(part))
    assert part.read_bytes() == data[start:stop]
    assert blobs_of(b)[cid].held_bytes == 2 * CHUNK_BYTES
    assert not blobs_of(b)[cid].whole
    assert b.client.read(cid, stop=10) == data[:10]
    assert b.client.read(cid) == data
    assert b.client.read(cid, len(data) - 5, len(data) + 10**9) == data[-5:]
    done = subprocess.run(
        [*SHOAL, "get", cid, "-o", "-"],
        env=clean_environment(SHOAL_HOME=str(b.home)),
        capture_output=True,
        timeout=60,
    )
    assert done.stdout == data
    assert b"error" not in done.stderr


def test_pins_and_collection(pair: tuple[Daemon, Daemon], tmp_path: Path) -> None:
    a, _ = pair
    client = a.client
    kept = client.add(random_file(tmp_path / "kept", 5000, 4))
    idle = client.add(random_file(tmp_path / "idle", 5000, 5), pin=False)
    gone = json.loads(shell(a, "blobs", "gc", "--json"))
    assert gone["freed_bytes"] >= 5000
    assert idle.cid not in blobs_of(a)
    shell(a, "blobs", "unpin", kept.cid)
    assert not blobs_of(a)[kept.cid].pinned
    shell(a, "blobs", "pin", kept.cid)
    assert client.gc().blobs == 0
    assert client.rm(kept.cid).freed_bytes == 5000
    with pytest.raises(shoal.ApiError) as caught:
        client.rm(kept.cid)
    assert (caught.value.code, caught.value.status) == ("not_found", 404)
    document = json.loads(shell(a, "blobs", "ls", "--json"))
    assert set(document) == set(BlobList.__struct_fields__)


def test_errors_are_one_line_and_a_status(pair: tuple[Daemon, Daemon], tmp_path: Path) -> None:
    a, b = pair
    for args, status, text in (
        (("get", "x"), 2, "not a CID"),
        (("add", str(tmp_path / "nothing")), 2, "No such file"),
        (("get", "bafkreifjjcie6lypi6ny7amxnfftagclbuxndqonfipmb64f2km2devei4"), 1, "nobody"),
        (("get", "x", "--range", "5"), 2, "is not like"),
        (("blobs", "rm", "x"), 2, "not a CID"),
        (("blobs", "show", "bafkreifjjcie6lypi6ny7amxnfftagclbuxndqonfipmb64f2km2devei4"), 1,
         "is not here"),
    ):  # fmt: skip
        done = run(b.home, *args)
        assert (done.returncode, done.stdout) == (status, ""), done.stderr
        assert text in done.stderr
        assert "Traceback" not in done.stderr
    with pytest.raises(shoal.ApiError, match="no absolute path"):
        list(a.client.blob_events("/v1/blobs", {"path": "relative"}))


def test_the_asynchronous_client_does_the_same(pair: tuple[Daemon, Daemon], tmp_path: Path) -> None:
    a, b = pair
    path = random_file(tmp_path / "in", 2 * CHUNK_BYTES, 6)

    async def main() -> None:
        one, two = shoal.connect_async(a.home), shoal.connect_async(b.home)
        blob = await one.add(path, name="in")
        got = await two.get(blob.cid, tmp_path / "out", peers=["a"], pin=True)
        assert (got.cid, got.pinned, got.whole) == (blob.cid, True, True)
        assert await two.read(blob.cid, 5, 25) == path.read_bytes()[5:25]
        assert (await two.unpin(blob.cid)).pinned is False
        assert (await two.blob(blob.cid)).files == []
        assert await two.verify() == []
        assert blob.cid in {each.cid for each in (await one.blobs()).blobs}
        assert (await two.rm(blob.cid)).freed_bytes == 2 * CHUNK_BYTES
        assert (await two.gc()).blobs >= 0

    trio.run(main)
    assert (tmp_path / "out").read_bytes() == path.read_bytes()


# --- kill -9 and Ctrl-C ----------------------------------------------------------------------


@pytest.fixture
def slow(tmp_path: Path) -> Generator[tuple[Daemon, Daemon, Path, str]]:
    """A daemon that gives 20 MiB/s, another that fetches, a file of 60 MiB and its CID."""
    with daemons(tmp_path, "a", "b") as (a, b):
        a.environment = {"SHOAL_BLOBS__UPLOAD_MIB_S": "20"}
        a.start()
        b.start("--join", a.client.ticket())
        b.client.wait(peers=1)
        path = random_file(tmp_path / "big", SIZE, 7)
        yield a, b, path, a.client.add(path).cid


def launch_get(b: Daemon, cid: str, out: Path) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(
        [*SHOAL, "get", cid, "-o", str(out), "--json"],
        env=clean_environment(SHOAL_HOME=str(b.home)),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def await_bytes(process: "subprocess.Popen[bytes]", size_bytes: int) -> int:
    assert process.stdout is not None
    for line in process.stdout:
        done = json.loads(line)["done_bytes"]
        if done >= size_bytes:
            return int(done)
    raise AssertionError("it ended before")


def bytes_in(daemon: Daemon) -> float:
    text = daemon.client.call("GET", "/metrics", reply=bytes).decode()
    return float(text.split("\nshoal_blobs_bytes_in_total ")[1].split()[0])


def test_kill_9_in_the_middle_costs_nothing_that_had_come(
    slow: tuple[Daemon, Daemon, Path, str], tmp_path: Path
) -> None:
    _, b, path, cid = slow
    out = tmp_path / "out"
    with launch_get(b, cid, out) as getting:
        had = await_bytes(getting, 20 * CHUNK_BYTES)
        b.kill()
        assert getting.wait(10) != 0
    assert not out.exists()
    b.start()
    b.client.wait(peers=1)
    with launch_get(b, cid, out) as again:
        assert again.stdout is not None
        documents = [json.loads(line) for line in again.stdout]
        assert again.wait(30) == 0
    assert out.read_bytes() == path.read_bytes()
    assert documents[-1]["state"] == "done"
    assert bytes_in(b) <= SIZE - had + 2 * CHUNK_BYTES
    b.kill()  # what `get` has acknowledged is there after the next one, too
    b.start()
    assert b.client.read(cid, 0, 100) == path.read_bytes()[:100]
    assert blobs_of(b)[cid].whole


def test_ctrl_c_says_that_it_can_go_on_and_it_does(
    slow: tuple[Daemon, Daemon, Path, str], tmp_path: Path
) -> None:
    _, b, path, cid = slow
    out = tmp_path / "out"
    with launch_get(b, cid, out) as getting:
        await_bytes(getting, 10 * CHUNK_BYTES)
        getting.send_signal(signal.SIGINT)
        assert getting.wait(10) == 130
        assert getting.stderr is not None
        said = getting.stderr.read().decode()
    assert "what has arrived stays" in said
    assert "Traceback" not in said
    time.sleep(1)
    before = bytes_in(b)
    assert 10 * CHUNK_BYTES <= before < SIZE
    time.sleep(0.5)
    assert bytes_in(b) == before  # nobody fetches on
    shell(b, "get", cid, "-o", str(out))
    assert out.read_bytes() == path.read_bytes()
    assert bytes_in(b) <= SIZE + CHUNK_BYTES


@pytest.mark.skipif(os.geteuid() != 0, reason="a small disk is mounted: needs root")
def test_a_full_disk_is_refused_and_all_goes_on(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=40m", "none", str(disk)])
    if mounted.returncode:
        pytest.skip("no mounts here")
    try:
        with daemons(tmp_path, "a") as (a,), daemons(disk, "b") as (b,):
            a.start()
            b.environment = {"SHOAL_BLOBS__QUOTA_GIB": "1"}
            b.start("--join", a.client.ticket())
            b.client.wait(peers=1)
            small = b.client.add(random_file(tmp_path / "small", 8 * CHUNK_BYTES, 8))
            big = a.client.add(random_file(tmp_path / "big", 35 * CHUNK_BYTES, 9))
            (disk / "others").write_bytes(bytes(1))
            for act in (lambda: b.client.get(big.cid), lambda: b.client.add(tmp_path / "big")):
                with pytest.raises(shoal.ApiError) as caught:
                    act()
                assert caught.value.code == "disk"
                assert "no room" in str(caught.value)
            assert b.client.status().state == "ready"
            a.client.get(small.cid, tmp_path / "out")  # it serves on
            assert (tmp_path / "out").read_bytes() == (tmp_path / "small").read_bytes()
            assert b.client.rm(small.cid).freed_bytes
            b.client.get(big.cid)
    finally:
        subprocess.run(["umount", str(disk)], check=True)
