"""Connecting from the listening port, which two daemons still cannot share."""

import socket

import pytest
import trio

from node.host.addresses import Address, parse_address
from node.host.listeners import Listener, connect_from, open_listener
from wire.errors import UsageError

ANY_PORT = parse_address("/ip4/127.0.0.1/tcp/0")


async def accept(listener: Listener) -> tuple[trio.SocketStream, Address]:
    """Take one connection; return it and where it came from."""
    sock, name = await listener.sock.accept()
    return trio.SocketStream(sock), Address("ip4", str(name[0]), int(name[1]))


async def test_it_comes_from_the_port_that_listens() -> None:
    ours, theirs = await open_listener(ANY_PORT), await open_listener(ANY_PORT)
    with ours.sock, theirs.sock:
        out = await connect_from(ours, theirs.address, 1.0)
        inbound, remote = await accept(theirs)
        async with out, inbound:
            assert remote == ours.address
            with pytest.raises(OSError, match="assign"):  # EADDRNOTAVAIL: it stands already
                await connect_from(ours, theirs.address, 1.0)


@pytest.mark.parametrize("host", ["/ip4/127.0.0.1", "/ip6/::1"])
async def test_two_daemons_still_cannot_share_a_port(host: str) -> None:
    ours = await open_listener(parse_address(f"{host}/tcp/0"))
    other = await open_listener(parse_address(f"{host}/tcp/0"))
    with ours.sock, other.sock:
        async with await connect_from(ours, other.address, 1.0):
            with pytest.raises(UsageError, match="in use"):
                await open_listener(ours.address)
        with pytest.raises(UsageError, match="in use"):
            await open_listener(ours.address)


async def test_a_daemon_starts_again_while_what_it_punched_still_ends() -> None:
    ours, other = await open_listener(ANY_PORT), await open_listener(ANY_PORT)
    with other.sock:
        async with await connect_from(ours, other.address, 1.0):
            ours.sock.close()
            again = await open_listener(ours.address)
            again.sock.close()


async def test_a_refused_connection_leaves_no_socket_and_the_port_as_it_was() -> None:
    ours, gone = await open_listener(ANY_PORT), await open_listener(ANY_PORT)
    gone.sock.close()
    with ours.sock:
        for _ in range(3):
            with pytest.raises(ConnectionRefusedError):
                await connect_from(ours, gone.address, 1.0)
        with trio.socket.socket(socket.AF_INET) as caller:
            await caller.connect((ours.address.host, ours.address.port))
            inbound, remote = await accept(ours)
            async with inbound:
                assert remote.port == caller.getsockname()[1]
