"""One attempt as pure logic: what its proposer makes of answers, and when a member may sign."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import msgspec

from protocols.modelsync.ballots import is_covered, to_adopt
from protocols.modelsync.blame import outvoted
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
from wire.ids import PeerId, Signer, verify


@dataclass(frozen=True)
class Aborted:
    """The attempt failed: whom to leave out, whom to ask again, what others know already.

    `bounds` are results that members turned out to be bound to. `is_void`: members signed
    different results, so nobody is bound by this attempt.
    """

    excluded: frozenset[PeerId] = frozenset()
    stale: frozenset[PeerId] = frozenset()
    attempt: int = 0
    certificate: Certificate | None = None
    bounds: Mapping[PeerId, Bound] = field(default_factory=dict[PeerId, Bound])
    is_void: bool = False


@dataclass
class Tally:
    """The proposer's count: GO when all have said ACK, a certificate when all have said DONE."""

    prepare: Prepare
    sent_go: Go | None = None
    acks: dict[PeerId, Ack] = field(default_factory=dict[PeerId, Ack])
    dones: dict[PeerId, Done] = field(default_factory=dict[PeerId, Done])

    def ack(self, member: PeerId, ack: Ack) -> Go | Aborted | None:
        """Count an ACK. Nobody may be bound to a better result than the one that we adopt."""
        prepare = self.prepare
        if member in self.acks:
            return Aborted(frozenset({member}))
        self.acks[member] = ack
        brings = prepare.is_sealed and prepare.adopt is None
        if (ack.seal is None) == prepare.is_sealed or (ack.commitment is None) == brings:
            return Aborted(frozenset({member}))
        if len(self.acks) < len(prepare.members):
            return None
        of = prepare.run, prepare.lane, prepare.round
        bounds = {m: ack.bound for m, ack in self.acks.items() if ack.bound is not None}
        if not is_covered(*of, to_adopt(*of, bounds.values()), prepare.adopt):
            return Aborted(bounds=bounds)
        self.sent_go = self._go()
        return self.sent_go

    def done(self, member: PeerId, done: Done) -> Certificate | Aborted | None:
        """Count a DONE; with the last one comes the certificate, or who is at fault."""
        members = self.prepare.members
        if self.sent_go is None or member in self.dones:
            return Aborted(frozenset({member}))
        owners = self.prepare.source.members
        if len(done.shards) != len(owners) or not self._is_revealed(member, done):
            return Aborted(frozenset({member}))
        self.dones[member] = done
        if len(self.dones) < len(members):
            return None
        faulty = outvoted({m: done.shards for m, done in self.dones.items()}, owners=owners)
        if faulty:
            return Aborted(frozenset(faulty), is_void=True)
        certificate = self.prepare.certificate(result_of(done.shards), self.sent_go)
        body = certificate.body()
        forged = {
            m for m in members if not verify(m, CERTIFICATE_TAG, body, self.dones[m].signature)
        }
        if forged:
            return Aborted(frozenset(forged))
        reveals = [self.dones[m].reveal for m in members]
        return msgspec.structs.replace(
            certificate,
            signatures=tuple(self.dones[m].signature for m in members),
            reveals=tuple(reveal for reveal in reveals if reveal is not None),
        )

    def refused(self, member: PeerId, nack: Nack) -> Aborted:
        """A member does not take part."""
        known = nack.certificate
        of = (self.prepare.run, self.prepare.lane)
        if known is not None and (known.run, known.lane) == of and known.is_signed():
            return Aborted(certificate=known)
        stale = frozenset({member})
        excluded = stale if nack.reason in ("invalid", "schema") else frozenset[PeerId]()
        return Aborted(excluded, stale, attempt=nack.attempt)

    def missing(self) -> frozenset[PeerId]:
        """Members that have not said ACK, or once all have, not DONE."""
        said = self.acks if self.sent_go is None else self.dones
        return frozenset(self.prepare.members) - said.keys()

    def _go(self) -> Go:
        if not self.prepare.is_sealed:
            return Go()
        acks = [self.acks[member] for member in self.prepare.members]
        commitments = tuple(ack.commitment for ack in acks if ack.commitment is not None)
        return Go(commitments, tuple(ack.seal for ack in acks if ack.seal is not None))

    def _is_revealed(self, member: PeerId, done: Done) -> bool:
        seal = self.acks[member].seal
        if seal is None or done.reveal is None:
            return seal is None and done.reveal is None
        return seal_of(done.reveal) == seal


@dataclass
class Pledge:
    """What one member may say in one attempt: ACK, and once GO and the whole result are here, DONE.

    Who has signed is bound to the result, and says so. secret: 32 random bytes, for sealed rounds.
    """

    prepare: Prepare
    signer: Signer
    secret: bytes
    shards: list[bytes] | None = None
    told: Go | None = None
    commitment: bytes | None = None
    bound: Bound | None = None

    def ack(self, bound: Bound | None, commitment: bytes | None) -> Ack:
        """Promise. `commitment` is the hash of our contribution, if the round is sealed."""
        self.commitment = commitment
        return Ack(bound, commitment, seal_of(self.secret) if self.prepare.is_sealed else None)

    def go(self, go: Go) -> None:
        """The proposer lets us sign. Raises BadMessage if it does not tell what we said."""
        prepare = self.prepare
        if self.told is not None:
            raise BadMessage("GO said twice")
        me = prepare.members.index(self.signer.peer)
        count = len(prepare.members) if prepare.is_sealed else 0
        brought = count if prepare.adopt is None else 0
        if len(go.seals) != count or len(go.commitments) != brought:
            raise BadMessage("GO does not fit the attempt")
        if count and go.seals[me] != seal_of(self.secret):
            raise BadMessage("GO with another seal than ours")
        if brought and go.commitments[me] != self.commitment:
            raise BadMessage("GO with another commitment than ours")
        self.told = go

    def done(self) -> Done | None:
        """Sign, once: None while something is missing. Afterwards `bound` is set.

        Raises BadMessage if the result is not the one that the attempt adopts.
        """
        if self.told is None or self.shards is None or self.bound is not None:
            return None
        result = result_of(self.shards)
        if self.prepare.adopt is not None and result != self.prepare.adopt.result:
            raise BadMessage("another result than the one to adopt")
        self.bound = self.prepare.bound(result, self.told)
        body = self.prepare.certificate(result, self.told).body()
        signature = self.signer.sign(CERTIFICATE_TAG, body)
        return Done(self.shards, signature, self.secret if self.prepare.is_sealed else None)

    def is_of_us(self, certificate: Certificate) -> bool:
        """True if it certifies this very attempt and the result that we signed."""
        if self.shards is None or self.told is None:
            return False
        ours = self.prepare.certificate(result_of(self.shards), self.told)
        return certificate.body() == ours.body()
