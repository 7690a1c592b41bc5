"""Calls over an in-memory network on a virtual clock: deadlines, cancellation, faults."""

import pytest
import trio
from trio.testing import MockClock

from tests.sim.net import Net
from wire.codec import Message
from wire.errors import DeadlineExceeded, NotFound, PeerUnreachable, RemoteError
from wire.ids import PeerId
from wire.ports import Call, Method

A, B = PeerId("A"), PeerId("B")


class Ask(Message, frozen=True, tag="ask"):
    number: int


class Reply(Message, frozen=True, tag="reply"):
    number: int


DOUBLE = Method("test.double", Ask, Reply)
COUNT = Method("test.count", Ask, Reply)


async def test_a_call_brings_the_answer(autojump_clock: MockClock, nursery: trio.Nursery) -> None:
    net = Net(nursery, latency_s=0.01)

    async def double(peer: PeerId, ask: Ask) -> Reply:
        assert peer == A
        return Reply(2 * ask.number)

    net.rpc(B).serve(DOUBLE, double)
    began = trio.current_time()
    assert await net.rpc(A).call(B, DOUBLE, Ask(21), timeout_s=1) == Reply(42)
    assert trio.current_time() - began == pytest.approx(0.04)
