"""What a member has promised, what a proposer must adopt, and who may be in an attempt at all."""

import msgspec
import pytest

from protocols.modelsync.machine import Propose
from protocols.modelsync.wire import Ballot, Bound
from tests.unit.test_modelsync_machine import (
    A,
    B,
    C,
    lead,
    leader,
    machine,
    member,
    offer,
    ready,
)


def test_what_we_promised_outlives_a_withdrawal() -> None:
    rounds = member()
    assert rounds.offered(offer(attempt=3)) == ""
    rounds.failed(offer(attempt=3).ballot, [])
    rounds.withdraw()
    assert rounds.offered(offer(attempt=4)) == "not_ready"
    rounds.submit(ready(1))
    assert rounds.offered(offer(attempt=3)) == "old"
    assert rounds.offered(offer(attempt=4)) == ""


def bound_to(attempt: int, **changes: object) -> Bound:
    base = Bound(attempt, C, b"r" * 32, [A, B, C], [1.0, 1.0, 1.0], [4, 3, 3], "float32")
    return msgspec.structs.replace(base, **changes)


def test_a_proposer_adopts_what_a_member_is_bound_to() -> None:
    rounds = leader()
    (other, third) = sorted({A, B, C} - {rounds.me})
    rounds.hear(other, msgspec.structs.replace(ready(1), bound=bound_to(0)))
    assert lead(rounds).adopt == bound_to(0)
    rounds.failed(Ballot(1, 0, rounds.me), [], bounds={third: bound_to(1)})
    prepare = None
    for now in range(10, 20):
        for effect in rounds.tick(float(now)):
            assert isinstance(effect, Propose)
            prepare = effect.prepare
    assert prepare is not None
    assert prepare.adopt == bound_to(1)


@pytest.mark.parametrize("lie", [{"shards": [4, 3, 4]}, {"codec": "int8"}, {"codec": "nonsense"}])
def test_who_claims_to_be_bound_to_no_possible_result_is_not_heard(lie: dict[str, object]) -> None:
    rounds = member()
    rounds.hear(B, msgspec.structs.replace(ready(1), bound=bound_to(0, **lie)))
    assert B not in rounds.roster.readies
    assert rounds.offered(offer(adopt=bound_to(0, **lie))) == "invalid"
    assert rounds.offered(offer(adopt=bound_to(0))) == ""


def test_newcomers_are_named_and_own_no_shard() -> None:
    rounds = leader()
    (other, third) = sorted({A, B, C} - {rounds.me})
    rounds.hear(other, msgspec.structs.replace(ready(1, weight=0.0), is_new=True))
    rounds.hear(third, msgspec.structs.replace(ready(1), owns=False))
    prepare = lead(rounds)
    assert prepare.newcomers == (other,)
    assert prepare.shards == [10 if peer == rounds.me else 0 for peer in prepare.members]


@pytest.mark.parametrize("is_new", [False, True])
def test_a_member_is_a_newcomer_to_its_proposer_as_it_is_to_itself(is_new: bool) -> None:
    rounds = machine(A, members="ABC", round_=1)
    rounds.submit(msgspec.structs.replace(ready(1), is_new=is_new))
    assert rounds.offered(offer(newcomers=(A,))) == ("" if is_new else "invalid")
    rounds.withdraw()
    rounds.submit(msgspec.structs.replace(ready(1), is_new=is_new))
    assert rounds.offered(offer(attempt=1)) == ("invalid" if is_new else "")


def test_who_mixes_is_not_ready_together_with_who_sums() -> None:
    rounds = leader()
    other = min({A, B, C} - {rounds.me})
    rounds.hear(other, msgspec.structs.replace(ready(1), topology="ring"))
    rounds.see(live=[rounds.me], left={})
    assert other not in lead(rounds).members
    mine = member()
    assert mine.offered(offer(topology="ring", is_sealed=True)) == "schema"
    assert mine.offered(offer(is_sealed=True)) == "schema"


def test_who_was_banned_is_neither_heard_nor_followed() -> None:
    rounds = member()
    rounds.roster.ban(B)
    rounds.hear(B, ready(1))
    assert B not in rounds.roster.readies
    assert rounds.offered(offer()) == "barred"
    assert rounds.offered(offer(proposer=C)) == "invalid"


@pytest.mark.parametrize(("attempt", "stays"), [(0, False), (1, True)])
def test_a_void_attempt_frees_who_signed_in_it_and_nobody_else(attempt: int, stays: bool) -> None:
    rounds = member()
    assert rounds.offered(offer(proposer=C)) == ""
    rounds.hold(bound_to(0))
    rounds.failed(Ballot(1, attempt, C), [B], is_void=True)
    assert (rounds.bound is not None) == stays
    assert rounds.mine is not None
    assert (rounds.mine.bound is not None) == stays


def test_an_attempt_that_failed_otherwise_leaves_us_bound() -> None:
    rounds = member()
    assert rounds.offered(offer(proposer=C)) == ""
    rounds.hold(bound_to(0))
    rounds.failed(Ballot(1, 0, C), [B])
    assert rounds.bound == bound_to(0)


def test_no_proposer_changes_the_pause_of_a_run_that_is_not_auto() -> None:
    assert member().offered(offer(every=1 << 20)) == "schema"
    assert member().offered(offer(adopt=bound_to(0, shards=[10, 0, 0], every=9))) == "invalid"
