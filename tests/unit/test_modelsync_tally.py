"""One attempt as pure logic: when a proposer says GO, certifies, gives up; when a member signs."""

import msgspec
import pytest

from protocols.modelsync.tally import Aborted, Pledge, Tally
from protocols.modelsync.wire import (
    CERTIFICATE_TAG,
    Ack,
    Bound,
    Certificate,
    Done,
    Go,
    Nack,
    Prepare,
    result_of,
    seal_of,
)
from wire.errors import BadMessage
from wire.ids import PeerId, Signer

SIGNERS = sorted((Signer(bytes([n]) * 32) for n in (1, 2, 3)), key=lambda s: s.peer)
PEERS = [signer.peer for signer in SIGNERS]
SHARDS = [b"a" * 32, b"b" * 32, b"c" * 32]
ROOT = b"s" * 32


def prepare(*, attempt: int = 2, sealed: bool = False, adopt: Bound | None = None) -> Prepare:
    return Prepare(
        "run", 1, attempt, PEERS[0], PEERS, [1.0, 0.0, 2.0], [4, 3, 3], "float32", ROOT, 10,
        is_sealed=sealed, adopt=adopt, every=7,
    )  # fmt: skip


def bound(attempt: int, *, proposer: PeerId = PEERS[1], shards: list[bytes] = SHARDS) -> Bound:
    return Bound(
        attempt, proposer, result_of(shards), [*PEERS, PeerId("gone")], [1.0] * 4, [4, 3, 3, 0],
        "float32",
    )  # fmt: skip


def pledges(about: Prepare) -> list[Pledge]:
    return [Pledge(about, signer, bytes([n]) * 32) for n, signer in enumerate(SIGNERS)]


def play(about: Prepare, shards: list[bytes]) -> Certificate:
    """An attempt in which all goes well."""
    tally, seats = Tally(about), pledges(about)
    commits = about.is_sealed and about.adopt is None
    go: object = None
    for number, seat in enumerate(seats):
        go = tally.ack(seat.signer.peer, seat.ack(None, bytes([number]) * 32 if commits else None))
    assert isinstance(go, Go)
    outcome: object = None
    for seat in seats:
        assert seat.done() is None
        seat.shards = shards
        assert seat.done() is None, "not before GO"
        seat.go(go)
        done = seat.done()
        assert done is not None
        assert seat.done() is None, "once"
        outcome = tally.done(seat.signer.peer, done)
    assert isinstance(outcome, Certificate)
    assert all(seat.is_of_us(outcome) for seat in seats)
    return outcome


@pytest.mark.parametrize("sealed", [False, True])
def test_when_all_say_done_the_certificate_has_all_that_the_round_was(sealed: bool) -> None:
    certificate = play(prepare(sealed=sealed), SHARDS)
    assert certificate.is_signed()
    assert certificate.result == result_of(SHARDS)
    assert certificate.contributors == certificate.members == PEERS
    assert certificate.weights == [1.0, 0.0, 2.0]
    assert certificate.every == 7
    assert len(certificate.commitments) == len(certificate.seals) == (3 if sealed else 0)
    assert certificate.reveals == (tuple(bytes([n]) * 32 for n in range(3)) if sealed else ())


@pytest.mark.parametrize("sealed", [False, True])
def test_an_adopted_result_keeps_its_contributors_and_all_else_under_the_new_ballot(
    sealed: bool,
) -> None:
    four = [*SHARDS, b"d" * 32]
    adopt = bound(1, shards=four)
    if sealed:
        adopt = msgspec.structs.replace(adopt, commitments=(b"k" * 32,) * 4)
    certificate = play(prepare(sealed=sealed, adopt=adopt), four)
    assert certificate.is_signed()
    assert certificate.members == PEERS
    assert certificate.contributors == adopt.members
    assert certificate.weights == adopt.weights
    assert certificate.attempt == 2
    assert certificate.every == 0
    assert certificate.commitments == adopt.commitments


def test_who_signs_an_adopted_result_is_bound_to_it_by_the_new_ballot() -> None:
    four = [*SHARDS, b"d" * 32]
    adopt = bound(1, shards=four)
    seat = pledges(prepare(adopt=adopt))[0]
    seat.go(Go())
    seat.shards = four
    assert seat.done() is not None
    assert seat.bound == msgspec.structs.replace(adopt, attempt=2, proposer=PEERS[0])


def test_another_result_than_the_one_to_adopt_is_not_signed() -> None:
    seat = pledges(prepare(adopt=bound(1)))[0]
    seat.go(Go())
    seat.shards = [b"x" * 32]
    with pytest.raises(BadMessage):
        seat.done()
    assert seat.bound is None


@pytest.mark.parametrize(
    ("mine", "adopted", "may"),
    [(1, None, False), (1, 1, True), (0, 1, True), (2, 1, False)],
)
def test_go_is_not_said_if_somebody_is_bound_to_a_better_result(
    mine: int, adopted: int | None, may: bool
) -> None:
    tally = Tally(prepare(attempt=5, adopt=None if adopted is None else bound(adopted)))
    theirs = bound(mine)
    tally.ack(PEERS[0], Ack())
    tally.ack(PEERS[1], Ack(theirs))
    outcome = tally.ack(PEERS[2], Ack())
    assert outcome == (Go() if may else Aborted(bounds={PEERS[1]: theirs}))


def test_where_members_signed_different_results_nobody_is_bound() -> None:
    tally, dones = ready_to_sign(prepare())
    dones[1] = msgspec.structs.replace(dones[1], shards=[b"x" * 32, *SHARDS[1:]])
    outcomes = [tally.done(peer, done) for peer, done in zip(PEERS, dones, strict=True)]
    assert outcomes[-1] == Aborted(frozenset({PEERS[1]}), is_void=True)


def test_missing_are_those_that_have_not_said_what_is_due() -> None:
    tally = Tally(prepare())
    assert tally.missing() == set(PEERS)
    tally.ack(PEERS[0], Ack())
    assert tally.missing() == {PEERS[1], PEERS[2]}
    for peer in PEERS[1:]:
        tally.ack(peer, Ack())
    assert tally.missing() == set(PEERS)
    tally.done(PEERS[1], Done(SHARDS, bytes(64)))
    assert tally.missing() == {PEERS[0], PEERS[2]}


def ready_to_sign(about: Prepare) -> tuple[Tally, list[Done]]:
    """All have said ACK and know the whole result."""
    tally, seats = Tally(about), pledges(about)
    for seat in seats:
        go = tally.ack(seat.signer.peer, seat.ack(None, ROOT if about.is_sealed else None))
    assert isinstance(go, Go)
    dones = []
    for seat in seats:
        seat.go(go)
        seat.shards = SHARDS
        done = seat.done()
        assert done is not None
        dones.append(done)
    return tally, dones


@pytest.mark.parametrize(
    "wrong",
    [
        {"signature": bytes(64)},
        {"shards": [b"x" * 32, *SHARDS[1:]]},
        {"shards": SHARDS[:2]},
        {"shards": [*SHARDS, b"d" * 32]},
        {"reveal": b"r" * 32},
    ],
)
def test_who_says_done_of_something_else_is_left_out(wrong: dict[str, object]) -> None:
    tally, dones = ready_to_sign(prepare())
    dones[1] = msgspec.structs.replace(dones[1], **wrong)
    outcomes = [tally.done(peer, done) for peer, done in zip(PEERS, dones, strict=True)]
    assert frozenset({PEERS[1]}) in [o.excluded for o in outcomes if isinstance(o, Aborted)]
    assert not any(isinstance(outcome, Certificate) for outcome in outcomes)


@pytest.mark.parametrize("reveal", [None, b"r" * 32])
def test_who_does_not_open_its_seal_is_left_out(reveal: bytes | None) -> None:
    tally, dones = ready_to_sign(prepare(sealed=True))
    dones[2] = msgspec.structs.replace(dones[2], reveal=reveal)
    outcomes = [tally.done(peer, done) for peer, done in zip(PEERS, dones, strict=True)]
    assert outcomes[-1] == Aborted(frozenset({PEERS[2]}))


@pytest.mark.parametrize(
    ("sealed", "ack"),
    [
        (False, Ack(None, ROOT)),
        (False, Ack(None, None, ROOT)),
        (True, Ack()),
        (True, Ack(None, ROOT)),
        (True, Ack(None, None, ROOT)),
    ],
)
def test_who_says_too_much_or_too_little_in_ack_is_left_out(sealed: bool, ack: Ack) -> None:
    tally = Tally(prepare(sealed=sealed))
    assert tally.ack(PEERS[1], ack) == Aborted(frozenset({PEERS[1]}))


def test_who_says_the_same_twice_or_out_of_turn_is_left_out() -> None:
    tally = Tally(prepare())
    out = Aborted(frozenset({PEERS[1]}))
    assert tally.done(PEERS[1], Done(SHARDS, bytes(64))) == out
    assert tally.ack(PEERS[1], Ack()) is None
    assert tally.ack(PEERS[1], Ack()) == out
    tally, dones = ready_to_sign(prepare())
    assert tally.done(PEERS[1], dones[1]) is None
    assert tally.done(PEERS[1], dones[1]) == out


def sealed_go() -> Go:
    return Go((ROOT,) * 3, tuple(seal_of(bytes([n]) * 32) for n in range(3)))


@pytest.mark.parametrize(
    ("sealed", "go"),
    [
        (False, sealed_go()),
        (True, Go()),
        (True, msgspec.structs.replace(sealed_go(), commitments=(b"x" * 32,) * 3)),
        (True, msgspec.structs.replace(sealed_go(), seals=(b"x" * 32,) * 3)),
        (True, msgspec.structs.replace(sealed_go(), seals=sealed_go().seals[:2])),
        (True, msgspec.structs.replace(sealed_go(), commitments=sealed_go().commitments[:2])),
    ],
)
def test_a_go_that_does_not_tell_what_we_said_is_refused(sealed: bool, go: Go) -> None:
    seat = pledges(prepare(sealed=sealed))[1]
    seat.ack(None, ROOT if sealed else None)
    with pytest.raises(BadMessage):
        seat.go(go)
    if sealed:
        seat.go(sealed_go())
        with pytest.raises(BadMessage, match="twice"):
            seat.go(sealed_go())


def test_a_refusal_with_proof_that_the_round_is_over_ends_it() -> None:
    certificate = play(prepare(), SHARDS)
    tally = Tally(prepare())
    assert tally.refused(PEERS[1], Nack("old", 3, certificate)).certificate == certificate
    for change in ({"signatures": ()}, {"run": "other"}, {"lane": 1}):
        false = msgspec.structs.replace(certificate, **change)
        assert tally.refused(PEERS[1], Nack("old", 3, false)).certificate is None


@pytest.mark.parametrize(
    ("reason", "is_out"), [("busy", False), ("invalid", True), ("schema", True)]
)
def test_who_refuses_is_asked_again_unless_it_cannot_follow_us(reason: str, is_out: bool) -> None:
    outcome = Tally(prepare()).refused(PEERS[1], Nack(reason, 4))
    assert outcome.stale == {PEERS[1]}
    assert outcome.excluded == ({PEERS[1]} if is_out else set())
    assert outcome.attempt == 4


def test_a_certificate_of_another_attempt_is_not_of_us() -> None:
    seat = pledges(prepare())[0]
    certificate = play(prepare(), SHARDS)
    assert not seat.is_of_us(certificate)
    seat.go(Go())
    seat.shards = SHARDS
    assert seat.is_of_us(certificate)
    assert not seat.is_of_us(play(prepare(attempt=3), SHARDS))


def test_what_is_signed_is_the_body_of_the_certificate() -> None:
    certificate = play(prepare(sealed=True), SHARDS)
    expected = SIGNERS[0].sign(CERTIFICATE_TAG, certificate.body())
    assert certificate.signatures[0] == expected
