"""The identity: made once, private, never guessed at when damaged."""

import os
import stat
from pathlib import Path

import pytest

from node.identity import load_or_make_identity, write_private
from wire.errors import UsageError
from wire.ids import verify


def test_the_first_start_makes_an_identity_and_the_next_finds_it(tmp_path: Path) -> None:
    path = tmp_path / "identity.key"
    signer, seed = load_or_make_identity(path)
    again, same_seed = load_or_make_identity(path)
    assert signer.peer == again.peer
    assert seed == same_seed == path.read_bytes()
    assert len(seed) == 32
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list(tmp_path.iterdir()) == [path]
    assert verify(signer.peer, "test", b"body", again.sign("test", b"body"))


@pytest.mark.parametrize("size", [0, 31, 33, 64])
def test_a_file_of_another_size_is_refused_and_left_alone(tmp_path: Path, size: int) -> None:
    path = tmp_path / "identity.key"
    path.write_bytes(bytes(size))
    path.chmod(0o600)
    with pytest.raises(UsageError, match="not an identity"):
        load_or_make_identity(path)
    assert path.read_bytes() == bytes(size)


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o666])
def test_an_identity_that_others_may_read_is_refused(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "identity.key"
    load_or_make_identity(path)
    path.chmod(mode)
    with pytest.raises(UsageError, match=f"mode {mode:04o}") as caught:
        load_or_make_identity(path)
    assert "chmod 600" in caught.value.hint


def test_what_is_not_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "identity.key").mkdir(mode=0o700)
    with pytest.raises(UsageError, match="identity"):
        load_or_make_identity(tmp_path / "identity.key")
    os.mkfifo(tmp_path / "pipe", mode=0o600)
    with pytest.raises(UsageError, match="not a regular file"):
        load_or_make_identity(tmp_path / "pipe")
    with pytest.raises(UsageError, match="cannot write"):
        load_or_make_identity(tmp_path / "absent" / "identity.key")


def test_a_crash_while_writing_leaves_the_old_file_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "swarm.key"
    write_private(path, b"old", replace=True)

    def no_space(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(UsageError, match="No space left"):
        write_private(path, b"new and longer", replace=True)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_an_existing_file_is_not_replaced_unasked(tmp_path: Path) -> None:
    path = tmp_path / "identity.key"
    write_private(path, b"first", replace=False)
    with pytest.raises(FileExistsError):
        write_private(path, b"second", replace=False)
    assert path.read_bytes() == b"first"


def test_the_seed_is_not_in_any_error(tmp_path: Path) -> None:
    path = tmp_path / "identity.key"
    secret = b"secretsecretsecret"
    path.write_bytes(secret)
    path.chmod(0o600)
    with pytest.raises(UsageError) as caught:
        load_or_make_identity(path)
    assert "secret" not in f"{caught.value} {caught.value.hint}".replace(str(path), "")
