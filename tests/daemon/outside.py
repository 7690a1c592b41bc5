"""Hosts on loopback addresses of different networks, which stand for the Internet: all of 127/8 is
this machine.
"""

import secrets
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from node.host.addresses import Address
from node.host.service import LibP2pHost
from tests.daemon.hosts import KEY, running

NETWORKS = ("127.1.0.1", "127.2.0.1", "127.3.0.1")


def anybody(_host: str) -> bool:
    """Every address counts as one of the Internet."""
    return True


def make(at: int) -> LibP2pHost:
    """Make a host that listens in one of the networks."""
    return LibP2pHost(secrets.token_bytes(32), KEY, [f"/ip4/{NETWORKS[at]}/tcp/0"])


@asynccontextmanager
async def meeting(count: int) -> AsyncGenerator[list[LibP2pHost]]:
    """Hosts of which the first is connected to the others."""
    hosts = [make(at) for at in range(count)]
    async with running(*hosts):
        yield hosts


async def connect(host: LibP2pHost, other: LibP2pHost) -> None:
    """Connect one host to another."""
    await host.connect(other.peer, other.addresses())


def own(host: LibP2pHost) -> Address:
    """Where a host listens."""
    return host.listeners[0].address
