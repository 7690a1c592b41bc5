"""HOME/dht.msgpack: what comes back from it, and what a damaged or forged one does."""

import errno
import os
import stat
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dht import snapshot
from dht.messages import hearsay
from dht.records import LIFE_MAX_MS, seal_peer
from dht.values import seal_head, seal_multi
from tests.sim.replicas import EPOCH_MS, signer
from wire.errors import BadMessage

ADDRESS = "/ip4/192.0.2.1/tcp/4001"
SIGNED = seal_peer(signer(1), [ADDRESS], seq=5, now_ms=EPOCH_MS)
TOLD = hearsay(signer(2).peer, (ADDRESS,))
UNTIL_MS = EPOCH_MS + LIFE_MAX_MS
HEAD = seal_head(signer(3), "latest", b"a", seq=7, expires_ms=UNTIL_MS)
MULTI = seal_multi(signer(3), "run/r", b"b", seq=8, expires_ms=UNTIL_MS)


def test_contacts_and_values_come_back_as_they_were(tmp_path: Path) -> None:
    path = tmp_path / "dht.msgpack"
    snapshot.write(path, snapshot.pack([SIGNED, TOLD], [HEAD, MULTI], [b"a", b"b"]))
    found = snapshot.read(path)
    assert [(one.peer, one.addrs, one.sealed) for one in found.contacts] == [
        (SIGNED.peer, (ADDRESS,), b""),
        (TOLD.peer, (ADDRESS,), b""),
    ]
    assert found.values == (HEAD, MULTI)
    assert found.names == (b"a", b"b")


def test_the_file_is_for_our_eyes_only_and_replaced_as_a_whole(tmp_path: Path) -> None:
    path = tmp_path / "dht.msgpack"
    path.write_bytes(b"old")
    path.chmod(0o644)
    snapshot.write(path, snapshot.pack([TOLD], []))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [each.name for each in tmp_path.iterdir()] == ["dht.msgpack"]


def test_a_disk_that_cannot_be_written_is_reported_only(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    snapshot.write(tmp_path / "missing" / "dht.msgpack", b"")
    assert "not_saved" in caplog.text


def test_a_full_disk_keeps_what_was_there_and_is_not_filled_further(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "dht.msgpack"
    snapshot.write(file, b"old")

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    snapshot.write(file, b"new")
    assert "No space left" in caplog.text
    assert [(each.name, each.read_bytes()) for each in tmp_path.iterdir()] == [(file.name, b"old")]


@pytest.mark.parametrize("data", [b"", b"\xc1", b"\x94\x01\x90\x90\x90", bytes(1000)])
def test_a_damaged_file_is_reported_and_left_out(
    data: bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "dht.msgpack"
    path.write_bytes(data)
    assert snapshot.read(path) == snapshot.Snapshot()
    assert "unreadable" in caplog.text


def test_without_a_file_there_is_nothing_to_report(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert snapshot.read(tmp_path / "dht.msgpack") == snapshot.Snapshot()
    assert caplog.text == ""


def test_a_file_that_is_too_large_is_not_parsed(tmp_path: Path) -> None:
    path = tmp_path / "dht.msgpack"
    with path.open("wb") as file:
        file.truncate(snapshot.FILE_MAX_BYTES + 10)
    assert snapshot.read(path) == snapshot.Snapshot()


def test_false_records_are_left_out_and_the_others_are_not() -> None:
    version, contacts, values, names = msgspec.msgpack.decode(
        snapshot.pack([SIGNED, TOLD], [HEAD, MULTI])
    )
    contacts[0][0] = "nobody"
    values[0][0] = values[1][0]  # under another name
    found = snapshot.unpack(msgspec.msgpack.encode([version, contacts, values, names]))
    assert [one.peer for one in found.contacts] == [TOLD.peer]
    assert found.values == (MULTI,)


def test_as_much_as_fits_is_kept() -> None:
    many = [hearsay(signer(n).peer, (ADDRESS,) * 40) for n in range(4)] * 400
    found = snapshot.unpack(snapshot.pack(many, [MULTI] * 2000, [b"name"] * 2000))
    assert len(found.contacts) == snapshot.CONTACTS_MAX
    assert len(found.values) == snapshot.VALUES_MAX
    assert len(found.names) == snapshot.NAMES_MAX


@given(st.binary(max_size=300))
def test_any_bytes(data: bytes) -> None:
    try:
        snapshot.unpack(data)
    except BadMessage:
        return
