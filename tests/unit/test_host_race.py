"""A race that is given up while somebody wins it."""

import trio

from node.host.race import Lanes, race


async def test_who_won_as_the_race_was_given_up_is_discarded() -> None:
    discarded = list[str]()

    async def attempt(name: str) -> str:
        scope.cancel()
        return name

    with trio.CancelScope() as scope:
        await race(Lanes([["good"]]), attempt, discarded.append, stagger_s=5.0)
    assert scope.cancelled_caught
    assert discarded == ["good"]
