"""The node's identity: the 32-byte Ed25519 seed in HOME/identity.key, mode 0600, never printed.

One key signs everything (DESIGN, section 4): libp2p handshakes, store entries, records, receipts.
"""

import contextlib
import os
import secrets
import stat
from pathlib import Path

from wire.errors import UsageError
from wire.ids import Signer

SEED_BYTES = 32  # an Ed25519 private key, as RFC 8032 calls it
_PRIVATE_MODE = 0o600


def load_or_make_identity(path: Path) -> tuple[Signer, bytes]:
    """Read the seed, or make a new one on first start. Returns the signer and the seed.

    Raises UsageError if the file is not a seed or if others may read it.
    """
    seed = read_private(path, SEED_BYTES + 1)
    if seed is None:
        # If another process was faster, its key is the identity now.
        with contextlib.suppress(FileExistsError):
            write_private(path, secrets.token_bytes(SEED_BYTES), replace=False)
        seed = read_private(path, SEED_BYTES + 1) or b""
    if len(seed) != SEED_BYTES:
        found = f"more than {SEED_BYTES}" if len(seed) > SEED_BYTES else str(len(seed))
        raise UsageError(
            f"{path} is not an identity: found {found} bytes, want {SEED_BYTES}",
            hint="restore it from a backup, or move it away to start as a new node",
        )
    return Signer(seed), seed


def read_private(path: Path, max_bytes: int) -> bytes | None:
    """Read a secret file, None if there is none. Raises UsageError if others may read it."""
    try:
        # Not blocking: opening a FIFO would wait for a writer.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from error
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise UsageError(f"{path} is not a regular file")
        if status.st_mode & 0o077:
            raise UsageError(
                f"{path} holds a secret but has mode {stat.S_IMODE(status.st_mode):04o}",
                hint=f"chmod 600 {path}  (and make a new key if others use this machine)",
            )
        return os.read(descriptor, max_bytes)
    finally:
        os.close(descriptor)


def write_private(path: Path, data: bytes, *, replace: bool) -> None:
    """Write a secret file whole or not at all, mode 0600, durably.

    Raises FileExistsError if it exists and `replace` is false; UsageError if it cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        descriptor = os.open(
            temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, _PRIVATE_MODE
        )
        try:
            with open(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            if replace:
                temporary.replace(path)
            else:
                path.hardlink_to(temporary)  # unlike a rename, fails if the name is taken
        finally:
            temporary.unlink(missing_ok=True)
        _sync_directory(path.parent)
    except FileExistsError:
        raise
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror}") from error


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
