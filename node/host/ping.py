"""libp2p's ping, `/ipfs/ping/1.0.0`: 32 bytes there and back. Source: libp2p/specs, ping.md.

Ours, since libp2p 0.8.1's server gives up a stream after 10 s, which a keep-alive would always just
miss or not, and never forgets a peer.
"""

import secrets

import trio

from node.host.stream import HostStream

PING = "/ipfs/ping/1.0.0"
PING_BYTES = 32
IDLE_S = 60.0  # without a ping: the stream's owner has forgotten it


async def answer_pings(stream: HostStream) -> None:
    """Send back what comes, until the other side is done."""
    while True:
        with trio.move_on_after(IDLE_S) as idle:
            first = await stream.read(PING_BYTES)
            if not first:
                return
            rest = await stream.read_exactly(PING_BYTES - len(first))
            await stream.write(first + rest)
        if idle.cancelled_caught:
            return


async def ping(stream: HostStream) -> float:
    """Return one round trip in seconds. Late answers to earlier pings are passed over."""
    nonce = secrets.token_bytes(PING_BYTES)
    sent_at = trio.current_time()
    await stream.write(nonce)
    while await stream.read_exactly(PING_BYTES) != nonce:
        pass
    return trio.current_time() - sent_at
