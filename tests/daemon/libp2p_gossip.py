"""A py-libp2p node with GossipSub 1.1: `python -m tests.daemon.libp2p_gossip MULTIADDR TOPIC`.

Says "from them" once a second, prints each message of others as a line `AUTHOR DATA`. A process of
its own, since the library leaves sockets open when a host stops.
"""

import secrets
import sys

import multiaddr
import trio
from libp2p import new_host
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.custom_types import TProtocol
from libp2p.peer.id import ID
from libp2p.peer.peerinfo import info_from_p2p_addr
from libp2p.pubsub.gossipsub import GossipSub
from libp2p.pubsub.pubsub import Pubsub
from libp2p.tools.anyio_service import background_trio_service


async def main(address: str, topic: str) -> None:
    """Talk until killed."""
    host = new_host(key_pair=create_new_key_pair(secrets.token_bytes(32)))
    router = GossipSub(
        [TProtocol("/meshsub/1.1.0")], degree=6, degree_low=4, degree_high=12, heartbeat_interval=1
    )
    pubsub = Pubsub(host, router, strict_signing=True)
    async with (
        host.run(listen_addrs=[multiaddr.Multiaddr("/ip4/127.0.0.1/tcp/0")]),
        background_trio_service(pubsub),
        background_trio_service(router),
        trio.open_nursery() as nursery,
    ):
        await pubsub.wait_until_ready()
        await host.connect(info_from_p2p_addr(multiaddr.Multiaddr(address)))
        subscription = await pubsub.subscribe(topic)

        async def say() -> None:
            while True:
                await trio.sleep(1)
                await pubsub.publish(topic, b"from them")

        nursery.start_soon(say)
        while True:
            message = await subscription.get()
            if ID(message.from_id) != host.get_id():
                print(ID(message.from_id).to_base58(), message.data.decode(), flush=True)


if __name__ == "__main__":
    trio.run(main, sys.argv[1], sys.argv[2])
