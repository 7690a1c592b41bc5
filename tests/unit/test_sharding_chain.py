"""The route in use: what follows a loss, event by event, and under schedules of random losses."""

import random

import pytest

from protocols.sharding.chain import ENTRY, Chain
from protocols.sharding.parts import (
    BROKEN_MAX,
    FIRST_PATIENCE_S,
    LOSSES_MAX,
    PATIENCE_S,
    RESUME_S,
    RETRY_S,
    DropStage,
    Effect,
    EndStage,
    FeedStage,
    GiveUp,
    HopLost,
    Loss,
    NoRoom,
    OpenStage,
    PingStage,
    RewireStage,
)
from protocols.sharding.route import NoRoute, RouteHop
from protocols.sharding.wire import SILENCE_S, Place
from tests.unit.chain_world import HOME, LAYERS, US, World, finder
from wire.errors import Busy
from wire.ids import PeerId

A, B, C, D, X, Y = (PeerId(name) for name in "abcdxy")


def chain(**spare: tuple[int, int]) -> Chain:
    """a, b and c with two blocks each, open; and who else there is."""
    spans = {A: (0, 2), B: (2, 4), C: (4, 6), **{PeerId(k): v for k, v in spare.items()}}
    made = Chain(US, LAYERS, finder(spans), now=0.0)
    hops = [RouteHop(A, 0, 2, "float16"), RouteHop(B, 2, 4, "int8"), RouteHop(C, 4, 6, "picks")]
    assert made.begin(hops) == [
        OpenStage(1, hops[0], "ids", US, Place(B, 2)),
        OpenStage(2, hops[1], "float16", A, Place(C, 4)),
        OpenStage(3, hops[2], "int8", B, HOME),
    ]
    assert made.opened(2, 0, truncates=True, now=0.0) == []
    assert made.opened(1, 16, truncates=True, now=0.0) == [FeedStage(Place(A, 0))]
    assert not made.is_whole
    assert made.opened(3, 32, truncates=True, now=0.0) == []
    assert made.is_whole
    made.picked(0.0)
    return made


def test_the_prompt_begins_where_all_stages_are() -> None:
    made = Chain(US, LAYERS, finder({}), now=0.0)
    made.begin([RouteHop(A, 0, 3, "float32"), RouteHop(B, 3, 6, "picks")])
    made.opened(1, 48, truncates=True, now=0.0)
    made.opened(2, 16, truncates=False, now=0.0)
    assert (made.position, made.truncates) == (16, False)


def test_a_lost_stage_is_replaced_and_its_neighbours_are_told() -> None:
    made = chain(x=(2, 4))
    x = RouteHop(X, 2, 4, "int8")
    effects = made.lost(2, Loss.FAILED, "worker gone", 1.0)
    assert [type(effect) for effect in effects] == [DropStage, OpenStage, RewireStage]
    opening = effects[1]
    assert isinstance(opening, OpenStage)
    assert (opening.hop.peer, opening.hop.codec, opening.takes) == (X, x.codec, "float16")
    assert (opening.previous, opening.next) == (A, Place(C, 4))
    assert effects[2] == RewireStage(3, X, HOME)  # so that it takes x's feed
    assert made.opened(4, 0, truncates=True, now=1.2) == [RewireStage(1, US, Place(X, 2))]
    assert made.is_whole
    assert made.replaced == 1


def test_a_stage_whose_stream_broke_is_first_looked_for_again() -> None:
    made = chain(x=(2, 4))
    drop, again = made.lost(2, Loss.BROKEN, "reset", 1.0)
    assert drop == DropStage(2)
    assert again == OpenStage(4, RouteHop(B, 2, 4, "int8"), "float16", A, Place(C, 4))
    assert made.opened(4, 7, truncates=True, now=1.1) == [RewireStage(1, US, Place(B, 2))]
    assert made.replaced == 0
    # again, and now it does not come back: as soon as that is clear another takes over
    made.lost(4, Loss.BROKEN, "reset", 2.0)
    effects = made.lost(5, Loss.BROKEN, "refused", 2.1)
    assert [effect.hop.peer for effect in effects if isinstance(effect, OpenStage)] == [X]
    assert made.replaced == 1


def test_looking_for_it_again_does_not_take_long() -> None:
    made = chain(x=(2, 4))
    made.lost(2, Loss.BROKEN, "reset", 1.0)
    for number in (1, 3):
        made.heard(number, 1.0)
    assert made.deadline == 1.0 + RESUME_S
    effects = made.tick(1.0 + RESUME_S)
    assert [effect.hop.peer for effect in effects if isinstance(effect, OpenStage)] == [X]


def test_our_own_path_changes_and_nothing_is_replaced() -> None:
    made = chain(x=(0, 6))
    opening: list[Effect] = []
    for number in (1, 2, 3):
        opening += made.lost(number, Loss.BROKEN, "reset", 1.0)
    assert [e.hop.peer for e in opening if isinstance(e, OpenStage)] == [A, B, C]
    told = [e for n in (4, 5, 6) for e in made.opened(n, 9, truncates=True, now=1.1)]
    assert FeedStage(Place(A, 0)) in told
    assert {e.number for e in told if isinstance(e, RewireStage)} == {4, 5}
    assert made.is_whole
    assert made.replaced == 0


def test_a_silent_stage_is_lost_at_its_deadline() -> None:
    made = chain(x=(2, 4))
    for number in (1, 3):
        made.heard(number, 1.0)
    assert made.deadline == SILENCE_S
    assert made.tick(SILENCE_S - 0.01) == []
    assert made.tick(SILENCE_S)[0] == DropStage(2)


def test_two_that_are_silent_at_once_are_replaced_by_one_over_both() -> None:
    made = chain(x=(0, 6))
    made.heard(3, 1.0)
    effects = made.tick(SILENCE_S)
    assert effects[:2] == [DropStage(1), DropStage(2)]
    [opening] = [effect for effect in effects if isinstance(effect, OpenStage)]
    assert (opening.hop.peer, opening.hop.start, opening.hop.end) == (X, 0, 4)
    assert (opening.takes, opening.hop.codec) == ("ids", "int8")


def test_one_is_replaced_by_two_with_other_bounds() -> None:
    made = chain(x=(0, 3), y=(3, 6))
    effects = made.lost(2, Loss.FAILED, "gone", 1.0)
    first, second = (effect for effect in effects if isinstance(effect, OpenStage))
    assert (first.hop.start, first.hop.end, first.takes) == (2, 3, "float16")
    assert (second.hop.start, second.hop.end, second.hop.codec) == (3, 4, "int8")
    assert first.hop.codec == second.takes
    assert (first.next, second.previous) == (Place(Y, 3), X)
    assert RewireStage(3, Y, HOME) in effects


def test_a_replacement_that_is_lost_is_replaced() -> None:
    made = chain(x=(2, 4), y=(2, 4))
    opening = made.lost(2, Loss.FAILED, "gone", 1.0)[1]
    assert isinstance(opening, OpenStage)
    effects = made.lost(4, Loss.BROKEN, "refused", 1.1)
    [other] = [effect.hop.peer for effect in effects if isinstance(effect, OpenStage)]
    assert {opening.hop.peer, other} == {X, Y}
    made.tick(20.0)
    assert made.lost(5, Loss.BUSY, "full", 20.1) == []  # it is lost already: too slow to open


def test_who_alone_has_the_blocks_is_tried_until_patience_ends() -> None:
    made = chain()
    made.lost(2, Loss.FAILED, "worker gone", 1.0)
    now, tries = 1.0, 0
    while True:
        now = min(made.deadline, now + 0.1)
        for number in (1, 3):
            made.heard(number, now)
        effects = made.tick(now)
        for effect in effects:
            if isinstance(effect, OpenStage):
                tries += 1
                effects += made.lost(effect.number, Loss.FAILED, "still gone", now)
        if any(isinstance(effect, GiveUp) for effect in effects):
            break
    [error] = [effect.error for effect in effects if isinstance(effect, GiveUp)]
    assert isinstance(error, HopLost)
    assert "blocks 2-4 on b are lost: still gone" in str(error)
    assert 1.0 + PATIENCE_S <= now < 1.2 + PATIENCE_S
    assert tries == pytest.approx(PATIENCE_S / RETRY_S, abs=2)
    assert made.deadline == float("inf")


def test_of_those_that_were_lost_the_one_that_was_lost_first_is_tried_first() -> None:
    made = chain(x=(2, 4))
    made.lost(2, Loss.FAILED, "gone", 1.0)
    made.lost(4, Loss.FAILED, "gone", 1.1)
    number, now, tried = 4, 1.1, list[PeerId]()
    for _ in range(4):
        now += RETRY_S
        for well in (1, 3):
            made.heard(well, now)
        [opening] = [effect for effect in made.tick(now) if isinstance(effect, OpenStage)]
        number += 1
        tried.append(opening.hop.peer)
        made.lost(number, Loss.FAILED, "still gone", now)
    assert tried == [B, X, B, X]


def test_full_stages_are_busy_at_the_beginning_and_waited_for_later() -> None:
    made = Chain(US, LAYERS, finder({A: (0, 6), B: (0, 6)}), now=0.0)
    made.begin([RouteHop(A, 0, 6, "picks")])
    busy = Busy("full", retry_after_s=7.0)
    effects = made.lost(1, Loss.BUSY, "full", 0.1, error=busy)
    assert [effect.hop.peer for effect in effects if isinstance(effect, OpenStage)] == [B]
    [_, over] = made.lost(2, Loss.BUSY, "full", 0.2, error=busy)
    assert isinstance(over, GiveUp)
    assert isinstance(over.error, NoRoom)
    assert over.error.retry_after_s == 7.0

    made = chain(x=(2, 4))
    made.lost(2, Loss.FAILED, "gone", 1.0)
    assert made.lost(4, Loss.BUSY, "full", 1.1) == [DropStage(4)]
    assert made.deadline == 1.1 + RETRY_S


def test_a_route_that_does_not_open_is_given_up_sooner() -> None:
    made = Chain(US, LAYERS, finder({A: (0, 6)}), now=0.0)
    effects = made.begin([RouteHop(A, 0, 6, "picks")])
    while not any(isinstance(effect, GiveUp) for effect in effects):
        effects = made.tick(made.deadline)
    assert made.now < FIRST_PATIENCE_S + 6


def test_stages_that_break_one_after_the_other_are_not_all_at_fault() -> None:
    spare = {f"p{index}": (2, 4) for index in range(60)}
    made = chain(**spare)
    number, effects = 2, list[Effect]()
    for losses in range(60):
        effects = made.lost(number, Loss.FAILED, "crashed", 1.0)
        if isinstance(effects[-1], GiveUp):
            assert losses == LOSSES_MAX
            return
        [number] = [effect.number for effect in effects if isinstance(effect, OpenStage)]
        made.opened(number, 0, truncates=True, now=1.0)
    raise AssertionError("it goes on and on")


def test_a_feed_that_broke_is_opened_again_once_the_next_has_answered() -> None:
    made = chain()
    assert made.broken(1, Place(B, 2), forgot=False, now=1.0) == [PingStage(2)]
    assert made.heard(2, 1.05) == [RewireStage(1, US, Place(B, 2))]
    assert made.heard(2, 1.5) == []
    assert made.broken(ENTRY, Place(A, 0), forgot=False, now=2.0) == [PingStage(1)]
    assert made.heard(1, 2.05) == [FeedStage(Place(A, 0))]
    assert made.broken(3, HOME, forgot=False, now=3.0) == [RewireStage(3, B, HOME)]
    assert made.broken(1, Place(X, 2), forgot=False, now=3.0) == []  # of a neighbour that it had


def test_a_stage_that_cannot_be_fed_is_lost_and_if_nobody_else_is_there_the_one_before() -> None:
    made = chain()
    number, to = 2, Place(B, 2)
    for _ in range(BROKEN_MAX):
        assert made.broken(1, to, forgot=False, now=1.0) == [PingStage(number)]
        made.heard(number, 1.0)
    assert made.broken(1, to, forgot=False, now=1.0) == [DropStage(2)]
    made.tick(1.0 + RETRY_S)
    made.opened(4, 0, truncates=True, now=1.6)
    for _ in range(BROKEN_MAX):
        made.broken(1, to, forgot=False, now=1.7)
    assert made.broken(1, to, forgot=False, now=1.7)[0] == DropStage(1)


def test_a_stage_that_forgot_what_is_lacked_is_ended_and_opened_anew() -> None:
    made = chain(x=(4, 6))
    made.lost(3, Loss.FAILED, "gone", 1.0)
    made.opened(4, 0, truncates=True, now=1.1)
    assert made.broken(2, Place(X, 4), forgot=True, now=1.2) == [EndStage(2)]
    effects = made.lost(2, Loss.ENDED, "forgot", 1.3)
    [opening] = [effect for effect in effects if isinstance(effect, OpenStage)]
    assert (opening.hop.peer, opening.previous, opening.next) == (B, A, Place(X, 4))
    assert opening.is_fresh  # it takes no prefix that it may have forgotten as well
    assert made.opened(5, 0, truncates=True, now=1.4) == [RewireStage(1, US, Place(B, 2))]
    assert made.replaced == 1


def test_a_stage_that_forgets_all_that_it_computes_is_replaced() -> None:
    made = chain(x=(4, 6), y=(2, 4))
    made.lost(3, Loss.FAILED, "gone", 1.0)
    made.opened(4, 0, truncates=True, now=1.1)
    made.broken(2, Place(X, 4), forgot=True, now=1.2)
    effects = made.lost(2, Loss.ENDED, "forgot", 1.3)
    [again] = [effect.hop.peer for effect in effects if isinstance(effect, OpenStage)]
    made.opened(5, 0, truncates=True, now=1.4)
    effects = made.broken(5, Place(X, 4), forgot=True, now=1.5)
    assert effects[0] == DropStage(5)
    [other] = [effect.hop.peer for effect in effects if isinstance(effect, OpenStage)]
    assert {again, other} == {B, Y}


def test_who_ends_a_session_unasked_is_lost_like_another() -> None:
    made = chain(x=(2, 4))
    effects = made.lost(2, Loss.ENDED, "a receipt", 1.0)
    assert [effect.hop.peer for effect in effects if isinstance(effect, OpenStage)] == [X]


def test_patience_is_with_each_gap_and_not_with_a_long_replay() -> None:
    made = chain(x=(2, 4), y=(0, 2))
    made.lost(2, Loss.FAILED, "gone", 1.0)
    made.opened(4, 0, truncates=True, now=1.1)
    late = 1.1 + 2 * PATIENCE_S  # it computes all that time
    effects = made.lost(1, Loss.FAILED, "gone", late)
    assert [effect.hop.peer for effect in effects if isinstance(effect, OpenStage)] == [Y]


def test_feeds_are_opened_anew_when_nothing_comes_out() -> None:
    made = chain()
    assert made.stalled(1.0) == [RewireStage(3, B, HOME)]
    assert made.heard(1, 1.1) == [FeedStage(Place(A, 0))]
    assert made.heard(3, 1.2) == [RewireStage(2, A, Place(C, 4))]


@pytest.mark.parametrize("seed", range(60))
def test_any_schedule_of_losses_ends_with_a_chain_that_answers(seed: int) -> None:
    rng = random.Random(seed)
    spans = {A: (0, 2), B: (2, 4), C: (4, 6), X: (0, 3), Y: (3, 6), D: (1, 5)}
    world = World(rng, {peer: spans[peer] for peer in rng.sample(list(spans), 6)})
    world.start()
    for _ in range(rng.randrange(1, 40)):
        world.later(rng.uniform(0.5, 20.0), world.fault)
    world.run(40.0)
    assert not world.gave_up
    assert world.is_right()
    before = world.picks
    world.run(45.0)
    assert world.picks - before >= 9
    with pytest.raises(NoRoute):
        finder({A: (0, 2)})(0, 6, US, US, ())
