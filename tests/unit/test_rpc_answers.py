"""Answers kept for calls that are made again: whose, how many, how long, and nothing else."""

import gc
import weakref

import pytest
import trio
from trio.testing import MockClock

from protocols.rpc.answers import AGE_S, KEPT_BYTES, KEPT_MAX, KEPT_OF_PEER_MAX, Answers
from tests.sim.rpc_methods import A, B, C
from wire.errors import NotFound, RemoteError
from wire.ids import PeerId


async def test_one_peer_cannot_make_us_forget_the_answers_to_others(
    autojump_clock: MockClock,
) -> None:
    answers, done = Answers(), list[PeerId]()

    async def ask(peer: PeerId, number: int) -> bool:
        async def work() -> bytes:
            done.append(peer)
            return b"answer"

        return (await answers.once((peer, "m", number.to_bytes(4, "big")), work))[1]

    assert not await ask(A, 1)
    for number in range(KEPT_MAX + 100):
        assert not await ask(B, number)
    assert await ask(A, 1)
    last = KEPT_MAX + 99
    assert [await ask(B, last - back) for back in (0, KEPT_OF_PEER_MAX - 1)] == [True, True]
    assert not await ask(B, last - KEPT_OF_PEER_MAX)
    await trio.sleep(700)
    assert not await ask(C, 1)
    assert not await ask(A, 1)  # too old by now


async def test_work_in_progress_is_not_forgotten_and_large_answers_are_not_done_again(
    autojump_clock: MockClock,
) -> None:
    answers, begun = Answers(), list[bytes]()

    async def ask(key: bytes, size: int = 0, wait_s: float = 0) -> bytes:
        async def work() -> bytes:
            begun.append(key)
            await trio.sleep(wait_s)
            return bytes(size)

        return (await answers.once((A, "m", key), work))[0]

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask, b"slow", 7, 2 * AGE_S)
        await trio.sleep(AGE_S + 1)
        for number in range(KEPT_OF_PEER_MAX + 10):
            await ask(number.to_bytes(4, "big"))
        assert len(await ask(b"slow")) == 7
    assert len(await ask(b"large", KEPT_BYTES + 1)) == KEPT_BYTES + 1
    with pytest.raises(RemoteError, match="were not kept"):
        await ask(b"large", KEPT_BYTES + 1)
    for _ in range(2):
        assert len(await ask(b"small", KEPT_BYTES)) == KEPT_BYTES
    assert (begun.count(b"slow"), begun.count(b"large"), begun.count(b"small")) == (1, 1, 1)


async def test_all_peers_together_have_no_more_than_so_many_answers(
    autojump_clock: MockClock,
) -> None:
    answers = Answers()

    async def ask(peer: PeerId, number: int) -> bool:
        async def work() -> bytes:
            return b""

        return (await answers.once((peer, "m", number.to_bytes(4, "big")), work))[1]

    peers = [PeerId(str(number)) for number in range(KEPT_MAX // 100 + 1)]
    for peer in peers:
        for number in range(100):
            await ask(peer, number)
    assert await ask(peers[-1], 0)
    assert not await ask(peers[0], 0)


class Request:
    """Something large."""


async def test_an_error_that_is_kept_does_not_keep_the_request(autojump_clock: MockClock) -> None:
    answers, refs = Answers(), list[weakref.ref[Request]]()

    async def handle(request: Request) -> bytes:
        raise NotFound("no")

    async def ask() -> None:
        request = Request()
        refs.append(weakref.ref(request))

        async def work() -> bytes:
            return await handle(request)

        with pytest.raises(RemoteError if len(refs) > 1 else NotFound, match="no") as caught:
            await answers.once((A, "m", b"key"), work)
        assert getattr(caught.value, "code", "") == "not_found"

    await ask()
    gc.collect()
    assert refs[0]() is None
    await ask()
