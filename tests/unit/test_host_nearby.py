"""What mDNS names is tried slowly and forgotten: on a LAN anybody can announce anything."""

import trio
from trio.testing import MockClock

from node.host.mdns import Found
from node.host.nearby import ATTEMPT_S, PAUSE_S, WAITING_MAX, WORKERS, Nearby
from wire.ids import PeerId


async def test_a_flood_of_findings_is_tried_at_a_bounded_rate(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    tried, now_trying, most = 0, 0, 0

    async def attempt(_: Found) -> None:
        nonlocal tried, now_trying, most
        tried, now_trying = tried + 1, now_trying + 1
        most = max(most, now_trying)
        await trio.lowlevel.checkpoint()
        now_trying -= 1

    nearby = Nearby(attempt)
    nursery.start_soon(nearby.run)
    for second in range(10):
        for number in range(1000):
            nearby.found(Found(PeerId(f"{second}/{number}"), ()))
        await trio.sleep(PAUSE_S)
    assert tried <= 11 * WORKERS
    assert most <= WORKERS
    assert nearby.dropped >= 10_000 - 11 * WORKERS - WAITING_MAX


async def test_an_attempt_that_hangs_ends_and_one_that_waits_is_not_queued_again(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    tried: list[Found] = []

    async def attempt(found: Found) -> None:
        tried.append(found)
        await trio.sleep_forever()

    nearby = Nearby(attempt)
    a, late = Found(PeerId("a"), ()), Found(PeerId("late"), ())
    for found in (a, a, *(Found(PeerId(str(n)), ()) for n in range(WORKERS)), late):
        nearby.found(found)
    nursery.start_soon(nearby.run)
    await trio.sleep(2 * (ATTEMPT_S + PAUSE_S))
    assert tried.count(a) == tried.count(late) == 1
