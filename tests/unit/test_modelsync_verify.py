"""Who checks whom, and what findings lead to: the rules of verification."""

import hashlib
from collections import Counter

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols.modelsync.verify import (
    KEPT_ROUNDS,
    Ask,
    Convict,
    Court,
    Deny,
    Duty,
    Look,
    assignments,
    beacon_of,
    by_case,
    certificate_hash,
    convicted,
    suspect,
)
from protocols.modelsync.verify_wire import Ban, Case, Charge, Finding, Verdict, case_key, case_of
from protocols.modelsync.wire import Certificate, seal_of
from wire.ids import PeerId

PEERS = [PeerId(f"peer{number:02d}") for number in range(16)]


def certificate(members: int, round_: int = 0, **changes: object) -> Certificate:
    """A sealed round of some members, who all brought data; signatures are not looked at here."""
    peers = PEERS[:members]
    reveals = tuple(hashlib.sha256(f"{p}/{round_}".encode()).digest() for p in peers)
    made = Certificate(
        run="test",
        round=round_,
        attempt=0,
        proposer=peers[0],
        members=peers,
        contributors=peers,
        weights=[1.0] * members,
        codec="int8",
        base_root=bytes(32),
        result=bytes(32),
        commitments=tuple(hashlib.sha256(peer.encode()).digest() for peer in peers),
        seals=tuple(map(seal_of, reveals)),
        reveals=reveals,
    )
    return msgspec.structs.replace(made, **changes)


@given(st.integers(1, 16), st.integers(0, 200))
def test_a_third_of_the_members_check_as_many_others_never_themselves(
    members: int, round_: int
) -> None:
    made = certificate(members, round_)
    chosen = assignments(made)
    assert len(chosen) == (0 if members == 1 else max(1, members // 3))
    assert len(set(chosen.values())) == len(chosen)
    assert all(validator != target for validator, target in chosen.items())
    assert assignments(msgspec.structs.replace(made, signatures=(bytes(64),))) == chosen


def test_over_many_rounds_everybody_checks_and_is_checked_about_as_often() -> None:
    validators, targets = Counter[PeerId](), Counter[PeerId]()
    for round_ in range(1000):
        chosen = assignments(certificate(4, round_))
        validators.update(chosen.keys())
        targets.update(chosen.values())
    for count in (*validators.values(), *targets.values()):
        assert 200 < count < 300


def test_every_member_moves_the_beacon_and_none_without_its_seal() -> None:
    made = certificate(4)
    beacons = {beacon_of(made)}
    for index in range(4):
        reveals = list(made.reveals)
        reveals[index] = bytes(32)
        beacons.add(beacon_of(msgspec.structs.replace(made, reveals=tuple(reveals))))
    beacons.add(beacon_of(msgspec.structs.replace(made, lane=1)))
    beacons.add(beacon_of(msgspec.structs.replace(made, round=1)))
    assert len(beacons) == 7
    assert beacon_of(msgspec.structs.replace(made, seals=(), reveals=())) is None
    assert assignments(msgspec.structs.replace(made, seals=(), reveals=())) == {}


def test_who_brought_nothing_or_is_gone_is_no_target() -> None:
    for round_ in range(50):
        idle = certificate(4, round_, weights=[0.0, 1.0, 1.0, 1.0])
        assert PEERS[0] not in assignments(idle).values()
        adopted = certificate(4, round_)
        contributors = [*PEERS[:3], PEERS[9]]  # of an earlier attempt, whose last member died
        adopted = msgspec.structs.replace(adopted, contributors=contributors)
        assert set(assignments(adopted).values()) <= set(PEERS[:3])


def test_what_is_far_longer_than_most_is_suspect() -> None:
    lengths = dict.fromkeys(PEERS[:4], 1.0)
    assert suspect(lengths) is None
    assert suspect(lengths | {PEERS[2]: 1000.0}) == PEERS[2]
    assert suspect({PEERS[0]: 1.0, PEERS[1]: 1.0, PEERS[2]: 11.0}) == PEERS[2]
    assert suspect({PEERS[0]: 1.0, PEERS[1]: 1.0, PEERS[2]: 10.0}) is None
    assert suspect({PEERS[0]: 1.0, PEERS[1]: 1e9}) is None  # of two nobody knows which
    assert suspect({}) is None


class Trial:
    """A round, its validator and target, and findings on it."""

    def __init__(self, members: int = 4) -> None:
        self.certificate = certificate(members)
        self.accuser, self.target = next(iter(assignments(self.certificate).items()))
        self.others = [
            peer for peer in self.certificate.members if peer not in {self.accuser, self.target}
        ]
        self.case = Case(0, 0, self.target)
        self.findings: dict[PeerId, Finding] = {}

    def say(self, peer: PeerId, verdict: Verdict, charge: Charge = "differs") -> None:
        self.findings[peer] = Finding(certificate_hash(self.certificate), verdict, charge)

    def convicts(self) -> list[tuple[PeerId, str]]:
        found = convicted(self.certificate, self.case, self.findings)
        return [(one.peer, one.ban.reason) for one in found]

    def steps(self, me: PeerId) -> list[object]:
        court = Court(me)
        court.note(self.certificate)
        items = [(self.case, peer, finding) for peer, finding in self.findings.items()]
        return list(court.judge(by_case(items)))


def test_more_than_half_of_the_members_convict() -> None:
    trial = Trial()
    trial.say(trial.accuser, "differs")
    trial.say(trial.others[0], "differs")
    assert trial.convicts() == []  # two of four
    trial.say(trial.others[1], "withheld")  # asked for the bytes and did not get them
    assert trial.convicts() == [(trial.target, "differs")]


def test_more_than_half_that_find_it_fine_convict_the_accuser() -> None:
    trial = Trial()
    trial.say(trial.accuser, "differs")
    trial.say(trial.target, "fine")
    trial.say(trial.others[0], "fine")
    assert trial.convicts() == []
    trial.say(trial.others[1], "fine")
    assert trial.convicts() == [(trial.accuser, "accused")]


def test_a_charge_of_withholding_that_is_refuted_convicts_nobody() -> None:
    trial = Trial()
    trial.say(trial.accuser, "withheld", "withheld")
    for peer in (*trial.others, trial.target):
        trial.say(peer, "fine", "withheld")
    assert trial.convicts() == []
    for peer in trial.others:
        trial.say(peer, "withheld", "withheld")
    assert trial.convicts() == [(trial.target, "withheld")]


def test_votes_on_another_charge_or_certificate_and_of_strangers_do_not_count() -> None:
    trial = Trial()
    trial.say(trial.accuser, "differs")
    trial.say(trial.others[0], "withheld", "withheld")
    trial.say(trial.others[1], "withheld", "withheld")
    for stranger in PEERS[8:]:
        trial.say(stranger, "differs")
    trial.say(trial.target, "differs")  # against itself, or by mistake
    assert trial.convicts() == []
    other = Trial()
    for peer in (other.accuser, *other.others):
        other.findings[peer] = Finding(bytes(32), "differs", "differs")
    assert not any(isinstance(step, Convict) for step in other.steps(other.others[0]))


def test_without_an_accusing_validator_there_is_no_case() -> None:
    trial = Trial()
    for peer in (*trial.others, trial.target):
        trial.say(peer, "differs")
    assert trial.convicts() == []
    assert trial.steps(trial.others[0]) == []


def test_what_each_member_is_asked_to_do() -> None:
    trial = Trial()
    trial.say(trial.accuser, "differs")
    voter = trial.others[0]
    assert trial.steps(voter) == [Duty(trial.case, "differs")]
    assert trial.steps(trial.target) == [Deny(trial.case, "differs")]
    assert trial.steps(trial.accuser) == []
    assert trial.steps(PEERS[9]) == []
    trial.say(voter, "fine")
    assert trial.steps(voter) == []
    trial.say(trial.accuser, "withheld", "withheld")  # the vote was on something else
    assert trial.steps(voter) == [Look(trial.case, trial.accuser)]
    trial.say(voter, "fine", "withheld")
    assert trial.steps(trial.accuser) == [Ask(trial.case, (voter,))]


def test_a_graver_charge_of_another_validator_is_not_hidden_by_one_of_withholding() -> None:
    trial = Trial(members=6)
    first, second = assignments(trial.certificate)
    case = Case(
        0, 0, next(peer for peer in trial.certificate.members if peer not in {first, second})
    )
    trial.say(first, "withheld", "withheld")
    trial.say(second, "differs")
    voter = next(p for p in trial.certificate.members if p not in {first, second, case.target})
    court = Court(voter)
    court.note(trial.certificate)
    assert court.judge({case: trial.findings}) == [Duty(case, "differs")]


def test_bans_are_told_once_and_believed_from_most_members() -> None:
    trial = Trial()
    court = Court(trial.others[0])
    court.note(trial.certificate)
    ban, others = Ban(0, 0, "differs"), [p for p in trial.certificate.members if p != trial.target]
    said = {trial.target: dict.fromkeys([*others[:2], trial.target, *PEERS[8:]], ban)}
    assert court.hear(said) == []  # two of four; the banned one and strangers do not count
    said[trial.target][others[2]] = ban
    assert court.hear(said) == [Convict(trial.target, ban)]
    assert court.hear(said) == []
    assert court.is_banned(trial.target)


def test_half_of_a_larger_round_is_not_most_of_it() -> None:
    court, ban = Court(PEERS[0]), Ban(0, 0, "differs")
    court.note(certificate(8))
    assert court.hear({PEERS[7]: dict.fromkeys(PEERS[:4], ban)}) == []
    assert court.hear({PEERS[7]: dict.fromkeys(PEERS[:5], ban)}) == [Convict(PEERS[7], ban)]


def test_rounds_are_judged_for_a_while_only() -> None:
    court = Court(PEERS[0])
    for round_ in range(KEPT_ROUNDS + 1):
        court.note(certificate(4, round_))
    assert not court.keeps(0, 0)
    assert all(court.keeps(0, round_) for round_ in range(1, KEPT_ROUNDS + 1))
    assert court.knows(PEERS[3])
    assert not court.knows(PEERS[4])


@given(st.text(max_size=80), st.sampled_from(PEERS))
def test_keys_of_others_are_no_cases(text: str, author: PeerId) -> None:
    case = Case(3, 12, PEERS[5])
    key = case_key("run", case, author)
    assert case_of(key, author) == case
    assert case_of(key, PeerId("mallory")) is None
    assert case_of(f"run/trust/case/{text}/@{author}", author) in {None, case} or "/" in text


@pytest.mark.parametrize("key", ["", "a/b", "r/trust/case/-1/2/x/@me", "r/trust/case/²/2/x/@me"])
def test_malformed_keys_are_no_cases(key: str) -> None:
    assert case_of(key, PeerId("me")) is None
