"""Who checks whom, and what follows: verification after BTARD (Gorbunov et al., ICML 2022).

Without I/O. All members compute the same from the same certificate and the same findings.

The beacon of a round is the hash of what its members revealed in DONE, which each had sealed
before it saw anybody's contribution: nobody chose it alone. By it a third of the members become
validators of the round, and each gets a target. A validator brings no data to the next round; it
makes the target's contribution anew, from the same state and the same data, and compares it with
what the target had committed to. If it differs, or is withheld, the validator accuses in the
store, and all members of that certificate find out for themselves and vote:

- more than half find the charge true (the accuser counts, the target does not): the target is
  banned from the run;
- more than half find a contribution fine that the accuser says differs: the accuser is banned.
  A charge that something was withheld has no such risk, for a target may withhold from one only.
  Whoever holds the bytes gives them, so that the accuser can then compare.

A validator that its own shard shows a contribution far out of proportion may check that one
instead of its target. Each costs members a round's work, so only validators may accuse; a
validator that does so falsely loses its place. Colluding members that are at most half of a
certificate's cannot ban anybody.
"""

import hashlib
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import median

from protocols.modelsync.verify_wire import Ban, Case, Charge, Finding
from protocols.modelsync.wire import Certificate
from wire.ids import PeerId

KEPT_ROUNDS = 4  # rounds of a lane whose contributions can be judged: trainers keep such states
SUSPICIOUS = 10.0  # times the median length: honest contributions of one round differ less
_BEACON_TAG = b"shoal/modelsync/beacon/1"

Findings = Mapping[PeerId, Finding]


@dataclass(frozen=True)
class Duty:
    """Recompute the contribution of `case.target`. charge None: as validator, by the beacon."""

    case: Case
    charge: Charge | None = None


@dataclass(frozen=True)
class Convict:
    """The findings suffice: `peer` is banned."""

    peer: PeerId
    ban: Ban


@dataclass(frozen=True)
class Deny:
    """We are accused: say that our contribution is fine."""

    case: Case
    charge: Charge


@dataclass(frozen=True)
class Look:
    """Try to get the bytes of a contribution that the accuser says are withheld."""

    case: Case
    accuser: PeerId


@dataclass(frozen=True)
class Ask:
    """We said they were withheld, but these have them: compare, and accuse again or not."""

    case: Case
    holders: tuple[PeerId, ...]


Step = Convict | Duty | Deny | Look | Ask


def beacon_of(certificate: Certificate) -> bytes | None:
    """Return the round's random bytes; None if it was not sealed."""
    if not certificate.seals or len(certificate.reveals) != len(certificate.members):
        return None
    head = f"{certificate.run}/{certificate.lane}/{certificate.round}".encode()
    parts = (_BEACON_TAG, hashlib.sha256(head).digest(), *certificate.reveals)
    return hashlib.sha256(b"".join(parts)).digest()


def assignments(certificate: Certificate) -> dict[PeerId, PeerId]:
    """Return the round's validators, each with its target: who brought data and is there still.

    A third of the members, at least one. Nobody checks itself, and nobody is checked twice.
    """
    beacon = beacon_of(certificate)
    if beacon is None:
        return {}

    def order(role: bytes, peer: PeerId) -> bytes:
        return hashlib.sha256(beacon + role + peer.encode()).digest()

    members = certificate.members
    validators = sorted(members, key=lambda peer: order(b"validator", peer))
    targets = sorted(_brought(certificate), key=lambda peer: order(b"target", peer))
    chosen: dict[PeerId, PeerId] = {}
    for validator in validators[: max(1, len(members) // 3)]:
        target = next((peer for peer in targets if peer != validator), None)
        if target is not None:
            targets.remove(target)
            chosen[validator] = target
    return chosen


def suspect(lengths: Mapping[PeerId, float]) -> PeerId | None:
    """Return whose contribution is far longer than most; None if nobody's is.

    lengths: the norm of each member's contribution to our own shard.
    """
    if len(lengths) < 3:
        return None
    longest = max(lengths, key=lambda peer: lengths[peer])
    return longest if lengths[longest] > SUSPICIOUS * median(lengths.values()) else None


def certificate_hash(certificate: Certificate) -> bytes:
    """Name a certificate in findings."""
    return hashlib.sha256(certificate.body()).digest()


def accuser_in(certificate: Certificate, findings: Findings) -> PeerId | None:
    """Return the validator whose charge is voted on: the graver first, then in their order."""
    accusers = [
        peer
        for peer in assignments(certificate)
        if peer in findings and findings[peer].verdict == findings[peer].charge
    ]
    return min(accusers, key=lambda peer: findings[peer].charge != "differs", default=None)


def convicted(certificate: Certificate, case: Case, findings: Findings) -> list[Convict]:
    """Return whom the members' findings on a case ban, if they suffice."""
    accuser, members = accuser_in(certificate, findings), certificate.members
    if accuser is None or accuser == case.target:
        return []
    charge = findings[accuser].charge
    said = {
        peer: findings[peer].verdict
        for peer in members
        if peer in findings and findings[peer].charge == charge
    }
    against = [peer for peer in said if said[peer] != "fine" and peer != case.target]
    if 2 * len(against) > len(members):
        return [Convict(case.target, Ban(case.lane, case.round, charge))]
    if charge == "differs" and 2 * (len(said) - len(against)) > len(members):
        liars = [peer for peer in assignments(certificate) if said.get(peer) == charge]
        return [Convict(peer, Ban(case.lane, case.round, "accused")) for peer in liars]
    return []


def _brought(certificate: Certificate) -> list[PeerId]:
    weights = zip(certificate.contributors, certificate.weights, strict=True)
    return [peer for peer, weight in weights if weight > 0 and peer in certificate.members]


@dataclass
class Court:
    """What one member knows of a run's rounds, cases and bans."""

    me: PeerId
    bans: dict[PeerId, Ban] = field(default_factory=dict[PeerId, Ban])
    _rounds: dict[tuple[int, int], Certificate] = field(
        default_factory=dict[tuple[int, int], Certificate]
    )
    _last: dict[int, int] = field(default_factory=dict[int, int])

    def note(self, certificate: Certificate) -> Duty | None:
        """A round was committed; return our duty as its validator, if we are one."""
        lane, round_ = certificate.lane, certificate.round
        self._rounds[lane, round_] = certificate
        self._last[lane] = max(round_, self._last.get(lane, 0))
        old = [key for key in self._rounds if key[0] == lane and key[1] <= round_ - KEPT_ROUNDS]
        for key in old:
            del self._rounds[key]
        target = assignments(certificate).get(self.me)
        return None if target is None else Duty(Case(lane, round_, target))

    def certificate(self, case: Case) -> Certificate | None:
        """The certificate of the case's round, while it can be judged."""
        return self._rounds.get((case.lane, case.round))

    def keeps(self, lane: int, round_: int) -> bool:
        """True while contributions to this round can be judged."""
        return (lane, round_) in self._rounds

    def knows(self, peer: PeerId) -> bool:
        """True for members of the rounds that can be judged."""
        return any(peer in certificate.members for certificate in self._rounds.values())

    def commitment(self, case: Case) -> bytes | None:
        """What the target of a case had committed to."""
        certificate = self.certificate(case)
        if certificate is None or case.target not in _brought(certificate):
            return None
        return certificate.commitments[certificate.contributors.index(case.target)]

    def is_banned(self, peer: PeerId) -> bool:
        """True if the run goes on without this peer."""
        return peer in self.bans

    def hear(self, bans: Mapping[PeerId, Mapping[PeerId, Ban]]) -> list[Convict]:
        """Believe the bans (by peer, then author) that most members of the last rounds hold.

        That is how those learn of them who were not there.
        """
        found: list[Convict] = []
        for lane, round_ in self._last.items():
            certificate = self._rounds[lane, round_]
            for peer, said in bans.items():
                authors = [m for m in certificate.members if m in said and m != peer]
                if peer not in self.bans and 2 * len(authors) > len(certificate.members):
                    self.bans[peer] = said[authors[0]]
                    found.append(Convict(peer, self.bans[peer]))
        return found

    def judge(self, cases: Mapping[Case, Findings]) -> list[Step]:
        """Return what the findings in the store lead to, and what they ask of us."""
        steps: list[Step] = []
        for case, told in cases.items():
            certificate = self.certificate(case)
            if certificate is None or self.commitment(case) is None:
                continue
            name = certificate_hash(certificate)
            findings = {peer: one for peer, one in told.items() if one.certificate == name}
            verdicts = convicted(certificate, case, findings)
            for verdict in verdicts:
                if verdict.peer not in self.bans:
                    self.bans[verdict.peer] = verdict.ban
                    steps.append(verdict)
            if not verdicts and self.me in certificate.members:
                steps += self._asked(certificate, case, findings)
        return steps

    def _asked(self, certificate: Certificate, case: Case, findings: Findings) -> list[Step]:
        accuser, mine = accuser_in(certificate, findings), findings.get(self.me)
        if accuser is None:
            return []
        charge = findings[accuser].charge
        if accuser == self.me:
            holders = tuple(
                peer
                for peer, one in findings.items()
                if (one.verdict, one.charge) == ("fine", "withheld")
            )
            return [Ask(case, holders)] if charge == "withheld" and holders else []
        if mine is not None and mine.charge == charge:
            return []
        if case.target == self.me:
            return [Deny(case, charge)]
        return [Look(case, accuser)] if charge == "withheld" else [Duty(case, charge)]


def by_case(items: list[tuple[Case, PeerId, Finding]]) -> dict[Case, dict[PeerId, Finding]]:
    """Gather findings by what they are about, then by author."""
    cases: defaultdict[Case, dict[PeerId, Finding]] = defaultdict(dict)
    for case, author, finding in items:
        cases[case][author] = finding
    return dict(cases)
