"""Pairs of children that are measured: Shoal, and what it is compared with.

A rival that cannot be installed or does not start is None, with the reason on standard error and
in `why_missing`.
"""

import socket
import subprocess
import sys
import tempfile
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from benchmarks.orders import Child, Failed
from benchmarks.report import progress

LATTICA = "lattica==1.0.21"
LATTICA_HOME = Path(__file__).parents[1] / ".rivals" / "lattica"
INSTALL_S = 300.0
LOOPBACK = "127.0.0.1"


@dataclass
class Pair:
    """Two children of one system; orders go to `client`, which is connected to `server`."""

    server: Child
    client: Child


class Missing(Exception):
    """A rival that is not to be had here."""


@contextmanager
def shoal_pair(server_in: str = "", client_in: str = "", ip: str = LOOPBACK) -> Generator[Pair]:
    """Start two hosts with RPC; *_in name network namespaces."""
    listen = f"/ip4/{ip}/tcp/0"
    module = [sys.executable, "-m", "benchmarks.shoal_node"]
    with ExitStack() as stack:
        server = stack.enter_context(Child("shoal", [*inside(server_in), *module, listen]))
        client = stack.enter_context(Child("shoal", [*inside(client_in), *module]))
        client.ask("connect", address=server.hello["address"])
        yield Pair(server, client)


@contextmanager
def plain_pair() -> Generator[Pair]:
    """Start plain TCP under trio."""
    module = [sys.executable, "-m", "benchmarks.rivals.plain_trio"]
    with Child("trio", module) as server, Child("trio", module) as client:
        client.ask("connect", port=server.hello["port"])
        yield Pair(server, client)


@contextmanager
def socket_pair(
    folder: Path, server_in: str = "", client_in: str = "", ip: str = LOOPBACK
) -> Generator[Pair]:
    """Start blocking sockets in threads, plain and TLS; the certificate goes to `folder`."""
    certificate = _certificate(folder)
    module = [sys.executable, "-m", "benchmarks.rivals.sockets"]
    with ExitStack() as stack:
        argv = [*module, ip, certificate]
        server = stack.enter_context(Child("sockets", [*inside(server_in), *argv]))
        argv = [*module, LOOPBACK, certificate]
        client = stack.enter_context(Child("sockets", [*inside(client_in), *argv]))
        yield Pair(server, client)


@contextmanager
def lattica_pair(
    server_in: str = "", client_in: str = "", ip: str = LOOPBACK, client_ip: str = LOOPBACK
) -> Generator[Pair]:
    """Start two Lattica nodes over TCP. Raises Missing."""
    python = lattica_python()
    module = [python, "-m", "benchmarks.rivals.lattica_node"]
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-lattica-"))
        try:
            argv = [*inside(server_in), *module, f"{folder}/server", ip, str(_free_port())]
            server = stack.enter_context(Child("lattica", argv))
            argv = [*inside(client_in), *module, f"{folder}/client", client_ip, str(_free_port())]
            client = stack.enter_context(Child("lattica", [*argv, server.hello["address"]]))
            client.ask("connect", peer=server.hello["peer"])
        except Failed as error:
            raise Missing(f"{LATTICA} does not work here: {error}") from error
        yield Pair(server, client)


def lattica_python() -> str:
    """Return the Python of Lattica's own environment; build it if need be. Raises Missing."""
    return rival_python(LATTICA_HOME, LATTICA)


def rival_python(home: Path, *requirements: str, before: tuple[str, ...] = ()) -> str:
    """Return the Python of an environment with packages of rivals in it; build it if need be.

    before: what is installed first, by itself, so that no resolver chooses another build of it.
    Raises Missing.
    """
    python, done, names = home / "bin" / "python", home / ".installed", " and ".join(requirements)
    if not done.exists():
        progress(f"installing {names} into {home.parent.name}/{home.name}")
        pip = [str(python), "-m", "pip", "-qq", "--disable-pip-version-check", "install"]
        try:
            steps = [[*pip, one] for one in before] + [[*pip, *requirements]]
            for argv in ([sys.executable, "-m", "venv", str(home)], *steps):
                subprocess.run(
                    argv, check=True, timeout=INSTALL_S, stdout=sys.stderr, stderr=sys.stderr
                )
        except (OSError, subprocess.SubprocessError) as error:
            raise Missing(f"{names} cannot be installed here: {error}") from error
        done.touch()
    return str(python)


def inside(namespace: str) -> list[str]:
    """Return what puts a command into a network namespace; "" is where we are."""
    return ["ip", "netns", "exec", namespace] if namespace else []


def _free_port() -> int:
    with socket.create_server((LOOPBACK, 0)) as probe:
        port: int = probe.getsockname()[1]
        return port


def _certificate(folder: Path) -> str:
    """Make a key and its certificate, which the standard library's TLS wants, in one file."""
    path = folder / "bench.pem"
    key, name = ec.generate_private_key(ec.SECP256R1()), x509.Name([])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    path.write_bytes(private + certificate.public_bytes(Encoding.PEM))
    return str(path)
