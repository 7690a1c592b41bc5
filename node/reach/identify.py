"""Asking a peer what it calls us, and what it is itself: libp2p's identify.

What it calls us is of use only where it dialled us: then it is the address of ours that it dialled.
Source: libp2p/specs, identify/README.md.
"""

import trio

from node.host.addresses import Address
from node.host.service import LibP2pHost
from node.host.views import Path
from node.reach.fields import Fields, bytes_in, decode_place, read_fields
from wire import multiaddrs
from wire.errors import PeerUnreachable, ShoalError
from wire.frames import FrameParser
from wire.ids import PeerId

IDENTIFY = "/ipfs/id/1.0.0"
MESSAGE_MAX = 8192  # bytes; keys, a hundred protocols and a dozen addresses
IDENTIFY_S = 5.0
ADDRESSES_MAX = 16  # of a peer, that are read
_LISTENS, _PROTOCOLS, _OBSERVED = 2, 3, 4  # fields of the message


async def seen_by(host: LibP2pHost, peer: PeerId) -> Address | None:
    """Return our address as a connected peer sees it. None for whatever goes wrong there."""
    try:
        found = bytes_in(await _asked(host, peer, path="direct"), _OBSERVED)
    except ShoalError:
        return None
    return decode_place(found[0]) if found else None


async def listens_at(host: LibP2pHost, peer: PeerId, protocol: str) -> list[str]:
    """Return where a connected peer says that it can be dialled; [] if it does not speak a protocol
    to others, and for whatever goes wrong there.
    """
    try:
        told = await _asked(host, peer)
        packed, spoken = bytes_in(told, _LISTENS), bytes_in(told, _PROTOCOLS)
    except ShoalError:
        return []
    if protocol.encode() not in spoken:
        return []
    found = [multiaddrs.unpack(each) for each in packed]
    return [each for each in found if each][:ADDRESSES_MAX]


async def _asked(host: LibP2pHost, peer: PeerId, *, path: Path | None = None) -> Fields:
    """Return a peer's message. Raises ShoalError."""
    parser = FrameParser(MESSAGE_MAX)
    with trio.move_on_after(IDENTIFY_S):
        stream = await host.open(peer, IDENTIFY, timeout_s=IDENTIFY_S, path=path)
        try:
            while data := await stream.read(MESSAGE_MAX):
                for frame in parser.feed(data):
                    return read_fields(bytes(frame))
        finally:
            stream.drop()
    raise PeerUnreachable(f"{peer} does not say what it is")
