"""The in-memory network itself: what other tests rely on."""

import pytest
import trio
from trio.testing import MockClock

from node.host.views import PeerDown, PeerEvent, PeerUp
from tests.sim.net import Net
from wire.errors import DeadlineExceeded, PeerUnreachable
from wire.ids import PeerId
from wire.ports import Stream

A, B, C = (PeerId(name) for name in "ABC")
ECHO = "/echo/1"


async def echo(stream: Stream) -> None:
    while data := await stream.read(1 << 20):
        await stream.write(data)
    await stream.finish()


@pytest.fixture
def net(nursery: trio.Nursery) -> Net:
    net = Net(nursery, latency_s=0.5)
    for peer in (A, B, C):
        net.host(peer).serve(ECHO, echo)
    return net


async def test_bytes_take_the_latency(autojump_clock: MockClock, net: Net) -> None:
    began = trio.current_time()
    stream = await net.host(A).open(B, ECHO, timeout_s=5)
    assert trio.current_time() - began == pytest.approx(1.0)
    await stream.write(b"hello")
    assert await stream.read(100) == b"hello"
    assert trio.current_time() - began == pytest.approx(2.0)
    await stream.finish()
    assert await stream.read(100) == b""
    assert await stream.read(100) == b""


async def test_a_loud_cut_breaks_and_refuses(autojump_clock: MockClock, net: Net) -> None:
    stream = await net.host(A).open(B, ECHO, timeout_s=5)
    net.cut(A, B)
    assert (net.host(A).connected(), net.host(B).connected()) == ([C], [C])
    with pytest.raises(PeerUnreachable):
        await stream.read(1)
    with pytest.raises(PeerUnreachable):
        await net.host(A).open(B, ECHO, timeout_s=5)
    net.heal()
    assert net.host(A).connected() == [B, C]
    await net.host(A).open(B, ECHO, timeout_s=5)
    with pytest.raises(PeerUnreachable):
        await stream.write(b"1")


async def test_a_silent_cut_hangs_and_delivers_when_healed(
    autojump_clock: MockClock, net: Net
) -> None:
    stream = await net.host(A).open(B, ECHO, timeout_s=5)
    net.cut(A, B, silent=True)
    await stream.write(b"hello")
    with trio.move_on_after(1000) as scope:
        await stream.read(100)
    assert scope.cancelled_caught
    with pytest.raises(DeadlineExceeded):
        await net.host(A).open(B, ECHO, timeout_s=5)
    assert B in net.host(A).connected()
    net.heal()
    assert await stream.read(100) == b"hello"


async def test_a_killed_host_is_gone_and_a_revived_one_serves_again(
    autojump_clock: MockClock, net: Net
) -> None:
    stream = await net.host(A).open(B, ECHO, timeout_s=5)
    net.kill(B)
    with pytest.raises(PeerUnreachable):
        await stream.read(1)
    with pytest.raises(PeerUnreachable):
        await net.host(B).open(A, ECHO, timeout_s=5)
    assert net.host(A).connected() == [C]
    net.revive(B)
    stream = await net.host(A).open(B, ECHO, timeout_s=5)
    await stream.write(b"1")
    assert await stream.read(1) == b"1"


async def test_a_restarted_host_serves_nothing_yet(autojump_clock: MockClock, net: Net) -> None:
    old = net.rpc(B)
    assert net.restart(B) is net.rpc(B) is not old
    assert net.host(A).connected() == [C, B]
    with pytest.raises(PeerUnreachable, match="does not speak"):
        await net.host(A).open(B, ECHO, timeout_s=5)


async def test_watching_shows_who_comes_and_goes(autojump_clock: MockClock, net: Net) -> None:
    events = list[PeerEvent]()

    async def watch() -> None:
        async for event in net.host(A).watch():
            events.append(event)

    net.nursery.start_soon(watch)
    await trio.sleep(1)
    net.kill(B)
    await trio.sleep(1)
    net.revive(B)
    await trio.sleep(1)
    net.cut(A, C)
    net.heal()  # at once: still a going and a coming
    await trio.sleep(1)
    assert events == [
        PeerUp(B), PeerUp(C), PeerDown(B), PeerUp(B), PeerDown(C), PeerUp(C),
    ]  # fmt: skip


async def test_without_a_mesh_connections_come_with_streams(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    net = Net(nursery, mesh=False)
    for peer in (A, B, C):
        net.host(peer).serve(ECHO, echo)
    assert net.host(A).connected() == []
    await net.host(A).open(B, ECHO, timeout_s=5)
    assert (net.host(A).connected(), net.host(B).connected()) == ([B], [A])
    net.cut(A, B)
    net.heal()
    assert net.host(A).connected() == []
