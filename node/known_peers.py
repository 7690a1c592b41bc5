"""Addresses of peers met before (HOME/peers.json), so that a restart needs no ticket."""

import os
from pathlib import Path
from typing import Annotated, Protocol

import msgspec
import structlog
import trio
from msgspec import Meta

from node.host.addresses import ADDRESS_MAX, parse_address
from wire.errors import BadMessage
from wire.ids import PeerId

PEERS_MAX = 64  # any one of them that lives is enough to find the rest
ADDRESSES_MAX = 8
FILE_MAX_BYTES = 256 * 1024  # 64 peers with 8 addresses each take 130 KiB at most
REMEMBER_INTERVAL_S = 30.0  # between two savings of the connected peers' addresses

_Address = Annotated[str, Meta(max_length=ADDRESS_MAX)]
_Peers = dict[str, Annotated[list[_Address], Meta(max_length=ADDRESSES_MAX)]]
_log = structlog.get_logger("peers")


class Host(Protocol):
    """What is needed of the host."""

    def connected(self) -> list[PeerId]:
        """Peers that we hold a connection to now."""
        ...

    def addresses_of(self, peer: PeerId, /) -> list[str]:
        """What we know of a peer's addresses."""
        ...


def read_known(path: Path, bootstrap: tuple[str, ...]) -> dict[PeerId, list[str]]:
    """Return the peers to try at start: those of the ticket and those met before.

    A damaged file is reported and left out: it holds nothing that cannot be found again.
    """
    known: dict[PeerId, list[str]] = {}
    try:
        data = path.read_bytes()[: FILE_MAX_BYTES + 1]
        remembered = msgspec.json.decode(data, type=_Peers)
    except FileNotFoundError:
        remembered = {}
    except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
        _log.warning("known peers unreadable", path=path, error=error)
        remembered = {}
    addresses = [address for each in remembered.values() for address in each]
    for address in [*bootstrap, *addresses]:
        try:
            peer = parse_address(address).peer
        except BadMessage:
            continue
        if peer is not None and (peer in known or len(known) < PEERS_MAX):
            known.setdefault(peer, []).append(address)
    return {peer: list(dict.fromkeys(each))[:ADDRESSES_MAX] for peer, each in known.items()}


def write_known(path: Path, peers: dict[PeerId, list[str]]) -> None:
    """Remember peers; those of before stay while there is room. A full disk is only reported."""
    merged = {**peers}
    for peer, addresses in read_known(path, ()).items():
        if len(merged) < PEERS_MAX:
            merged.setdefault(peer, addresses)
    kept = {
        peer: [_with_peer(address, peer) for address in addresses[:ADDRESSES_MAX]]
        for peer, addresses in list(merged.items())[:PEERS_MAX]
        if addresses
    }
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_bytes(msgspec.json.encode(kept))
        temporary.replace(path)
    except OSError as error:
        _log.warning("known peers not saved", path=path, error=error)


async def remember(path: Path, host: Host) -> None:
    """Remember who is connected now."""
    peers = {peer: host.addresses_of(peer) for peer in host.connected()}
    await trio.to_thread.run_sync(write_known, path, peers)


async def remember_often(path: Path, host: Host) -> None:
    """Remember them now and then, until cancelled."""
    while True:
        await trio.sleep(REMEMBER_INTERVAL_S)
        await remember(path, host)


def _with_peer(address: str, peer: PeerId) -> str:
    return str(parse_address(address).with_peer(peer))
