"""How connections of real hosts end: stopped, killed, frozen, hung up."""

import secrets
import signal
import subprocess
import sys
import threading

import pytest
import trio

from tests.daemon.hosts import ANY_PORT, KEY, PATIENCE_S, eventually, make_host, running
from wire.ports import Stream

CHILD = f"""
import sys, trio
from node.host.service import LibP2pHost
async def main():
    host = LibP2pHost(bytes.fromhex(sys.argv[1]), {KEY!r}, ["{ANY_PORT}"])
    async with trio.open_nursery() as nursery:
        await nursery.start(host.run)
        print(host.addresses()[0], flush=True)
trio.run(main)
"""


def start_child() -> "subprocess.Popen[bytes]":
    return subprocess.Popen(
        [sys.executable, "-c", CHILD, secrets.token_hex(32)], stdout=subprocess.PIPE
    )


async def test_what_was_written_before_the_stop_arrives() -> None:
    a, got = make_host(), list[int]()

    async def take(stream: Stream) -> None:
        total = 0
        while data := await stream.read(1 << 20):
            total += len(data)
        got.append(total)

    a.serve("/take", take)
    async with running(a):
        for _ in range(10):
            b = make_host()
            async with running(b):
                await b.connect(a.addresses()[0])
                stream = await b.open(a.peer, "/take", timeout_s=3)
                await stream.write(bytes(100_000))
                await stream.finish()
        await eventually(lambda: got == [100_000] * 10)


async def test_what_was_written_before_the_stop_arrives_at_a_busy_peer() -> None:
    a, got = make_host(), list[int]()

    async def take(stream: Stream) -> None:
        got.append(len(await stream.read(1 << 20)))

    a.serve("/take", take)

    async def come_and_go(connected: threading.Event, stopped: threading.Event) -> None:
        b = make_host()
        async with running(b):
            await b.connect(a.addresses()[0])
            connected.set()
            stream = await b.open(a.peer, "/take", timeout_s=3)
            await stream.write(bytes(1000))
            await stream.finish()
        stopped.set()

    async with running(a):
        for _ in range(8):  # what it does first with what it finds, is chance
            connected, stopped = threading.Event(), threading.Event()
            visitor = threading.Thread(target=trio.run, args=(come_and_go, connected, stopped))
            visitor.start()
            await eventually(connected.is_set)
            assert stopped.wait(PATIENCE_S)  # a's loop stands still: it finds everything at once
            await eventually(lambda: got)
            assert got.pop() == 1000
            visitor.join()


async def test_a_peer_that_hangs_up_at_once_is_not_dialled_in_a_circle() -> None:
    a, b = make_host(), make_host()

    async def hang_up() -> None:
        async for event in a.watch():
            await a.disconnect(event.peer)

    async with running(a, b), trio.open_nursery() as nursery:
        nursery.start_soon(hang_up)
        b.keep(a.peer, a.addresses())
        await trio.sleep(1.5)
        assert 2 <= a.counters().accepted <= 6
        nursery.cancel_scope.cancel()


@pytest.mark.slow
async def test_a_stopped_process_is_noticed_within_ten_seconds_and_a_killed_one_at_once() -> None:
    b = make_host()
    async with running(b):
        for how, within_s in ((signal.SIGKILL, 1.0), (signal.SIGSTOP, 11.0)):
            child = start_child()
            try:
                assert child.stdout
                with child.stdout as out:
                    address = await trio.to_thread.run_sync(out.readline)
                await b.connect(address.decode().strip())
                child.send_signal(how)
                await eventually(lambda: not b.connected(), within_s=within_s)
            finally:
                child.kill()
                child.wait()
