"""Channels with py-libp2p's GossipSub at the other end: what we speak is libp2p's protocol."""

import secrets
import subprocess
import sys

import trio

from protocols.channels.service import ChannelService
from protocols.rpc.service import RpcService
from tests.daemon.hosts import make_host, running
from wire.clock import SystemClock
from wire.ids import Signer

TOPIC = "news"
PATIENCE_S = 30.0  # the other side imports for 2 s on a free machine


async def test_messages_go_both_ways_between_us_and_libp2p() -> None:
    seed = secrets.token_bytes(32)
    host = make_host(seed=seed, key=None)
    channels = ChannelService(host, RpcService(host), Signer(seed), SystemClock())
    async with running(host), trio.open_nursery() as nursery:
        await nursery.start(channels.run)
        async with channels.listen(TOPIC) as messages:
            process = await trio.lowlevel.open_process(
                [sys.executable, "-m", "tests.daemon.libp2p_gossip", host.addresses()[0], TOPIC],
                stdout=subprocess.PIPE,
            )
            assert process.stdout is not None
            try:
                with trio.fail_after(PATIENCE_S):
                    heard = await anext(messages)
                    assert (heard.data, [heard.author]) == (b"from them", host.connected())
                    await channels.publish(TOPIC, b"from us")
                    line = b""
                    while not line.endswith(b"\n"):  # a pipe hands over pieces
                        line += await process.stdout.receive_some()
                assert line.decode() == f"{host.peer} from us\n"
                assert channels.stats.invalid == 0
            finally:
                process.kill()
                await process.wait()
                await process.stdout.aclose()
        nursery.cancel_scope.cancel()
