"""Asking a peer what it calls us: the observed address of libp2p's identify.

Of use only where the peer dialled us: then it is the address of ours that it dialled.
Source: libp2p/specs, identify/README.md.
"""

import trio

from node.host.addresses import Address
from node.host.service import LibP2pHost
from node.reach.fields import bytes_in, decode_place, read_fields
from wire.errors import DeadlineExceeded, PeerError, PeerUnreachable
from wire.frames import FrameParser
from wire.ids import PeerId

IDENTIFY = "/ipfs/id/1.0.0"
MESSAGE_MAX = 8192  # bytes; keys, a hundred protocols and a dozen addresses
IDENTIFY_S = 5.0
_OBSERVED = 4  # field of the message


async def seen_by(host: LibP2pHost, peer: PeerId) -> Address | None:
    """Return our address as a connected peer sees it. None for whatever goes wrong there."""
    parser = FrameParser(MESSAGE_MAX)
    try:
        with trio.fail_after(IDENTIFY_S):
            stream = await host.open(peer, IDENTIFY, timeout_s=IDENTIFY_S, path="direct")
            try:
                while data := await stream.read(MESSAGE_MAX):
                    for frame in parser.feed(data):
                        found = bytes_in(read_fields(bytes(frame)), _OBSERVED)
                        return decode_place(found[0]) if found else None
            finally:
                stream.drop()
    except (PeerUnreachable, DeadlineExceeded, PeerError, trio.TooSlowError):
        pass
    return None
