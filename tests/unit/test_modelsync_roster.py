"""Who is waited for, and who is not: suspects, the unreachable, spoilers, the banned."""

from protocols.modelsync.ballots import Electorate
from protocols.modelsync.roster import STRIKES_MAX, Roster
from protocols.modelsync.wire import Ready
from wire.ids import PeerId

A, B, C, D = (PeerId(name) for name in "ABCD")


def ready(round_: int = 1) -> Ready:
    return Ready("run", round_, b"s" * 32, 1.0, 10, "float32")


def roster() -> Roster:
    return Roster(A, Electorate(1, live=frozenset((A, B, C, D)), left={D: 1}))


def test_others_with_a_lease_that_have_not_left_are_waited_for() -> None:
    assert roster().expected() == {B, C}


def test_a_suspect_is_waited_for_again_once_it_says_that_it_is_ready() -> None:
    table = roster()
    table.strike(B, is_suspect=True)
    table.meet(B)
    assert table.expected() == {C}
    table.hear(B, ready())
    assert table.expected() == {B, C}
    assert table.left_out[B] == 1


def test_who_spoils_two_attempts_is_not_waited_for_in_this_round_whatever_it_says() -> None:
    table = roster()
    for _ in range(STRIKES_MAX):
        table.strike(B, is_suspect=True)
        table.hear(B, ready())
    assert table.expected() == {C}
    table.start_round(2)
    assert table.expected() == {B, C}
    table.strike(B, is_suspect=False)
    assert table.expected() == {C}, "the last round is not forgotten"
    table.committed([B])
    assert B in table.expected(), "it has made a round"


def test_whom_a_round_left_out_is_not_waited_for_until_it_is_heard() -> None:
    table = roster()
    table.committed([A, C])
    assert table.expected() == {C}
    assert table.left_out == {B: 1}


def test_the_banned_are_never_heard_again_and_we_never_ban_ourselves() -> None:
    table = roster()
    table.hear(B, ready())
    for peer in (A, B):
        table.ban(peer)
    table.hear(B, ready())
    assert table.readies == {}
    assert table.expected() == {C}
    assert table.are_banned([B, C])
    assert not table.are_banned([A, C])


def test_what_we_hear_of_ourselves_from_others_does_not_count() -> None:
    table = roster()
    table.hear(A, ready())
    table.lose(A)
    table.strike(A, is_suspect=True)
    assert table.readies == {}
    assert table.expected() == {B, C}
    assert table.left_out[A] == 0
