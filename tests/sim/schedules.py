"""Random schedules over the pure parts of a round: no sockets, no tasks, a clock that is a number.

Some nodes, each with its machine and what an attempt is to it; messages that arrive in any order,
late, or never; nodes that die, and come back without memory. The data of an attempt is a hash: a
member has the result once all that bring data take part, or once it finds one to adopt.
"""

import hashlib
import random
from dataclasses import dataclass, field

from protocols.modelsync.ballots import Electorate
from protocols.modelsync.machine import Behind, Diverged, Propose, Rounds
from protocols.modelsync.tally import Aborted, Pledge, Tally
from protocols.modelsync.wire import (
    Abort,
    Ack,
    Answer,
    Ballot,
    Certificate,
    Commit,
    Done,
    Go,
    Heard,
    Nack,
    Order,
    Prepare,
    Ready,
)
from wire.errors import BadMessage
from wire.ids import PeerId, Signer

SIGNERS = [Signer(bytes([n + 1]) * 32) for n in range(7)]
ELEMENTS = 7 * 4096
FIRST_ROOT = b"s" * 32


def next_root(root: bytes, result: bytes) -> bytes:
    """The state after a round."""
    return hashlib.sha256(root + result).digest()


@dataclass
class Node:
    """One member: what survives of it is its checkpoint."""

    signer: Signer
    rounds: Rounds
    round: int = 0
    root: bytes = FIRST_ROOT
    pledge: Pledge | None = None
    tally: Tally | None = None
    held: tuple[bytes, list[bytes]] | None = None
    joined: int | None = None

    @property
    def peer(self) -> PeerId:
        return self.signer.peer


@dataclass
class World:
    """Nodes, messages on their way, and everything that was ever certified."""

    count: int
    random: random.Random
    loss: float = 0.1
    haste: float = 0.05  # with which a node that looks at the clock gives its attempt up
    disorder: int = 1_000_000  # of how many of the oldest messages any may come next
    now: float = 0.0
    nodes: dict[PeerId, Node] = field(default_factory=dict[PeerId, Node])
    mail: list[tuple[PeerId, PeerId, object]] = field(default_factory=list)
    joins: dict[tuple[int, Ballot], set[PeerId]] = field(default_factory=dict)
    certified: dict[int, Certificate] = field(default_factory=dict[int, Certificate])
    roots: dict[int, bytes] = field(default_factory=dict[int, bytes])
    saved: dict[PeerId, tuple[int, bytes, Certificate | None]] = field(default_factory=dict)
    started: set[PeerId] = field(default_factory=set[PeerId])
    parted: frozenset[PeerId] = frozenset()
    left: dict[PeerId, int] = field(default_factory=dict[PeerId, int])  # farewells
    adopted: int = 0

    def __post_init__(self) -> None:
        for signer in SIGNERS[: self.count]:
            self.start(signer)

    # -- life and death ----------------------------------------------------------------------

    def start(self, signer: Signer) -> None:
        """A node begins, from its checkpoint or from what another has."""
        round_, root, certificate = self.saved.get(signer.peer, (0, FIRST_ROOT, None))
        electorate = Electorate(self.count // 2 + 1, certificate=certificate)
        rounds = Rounds("run", signer.peer, electorate, patience_s=1.0)
        node = Node(signer, rounds, round_, root)
        self.nodes[signer.peer] = node
        self.left.pop(signer.peer, None)
        for other in self.nodes.values():
            if other.round > node.round and self.are_linked(other.peer, node.peer):
                self.load(node, other)
        is_back = signer.peer in self.started
        self.started.add(signer.peer)
        node.joined = node.round if is_back else None
        self.submit(node)

    def is_last_to_know(self, peer: PeerId) -> bool:
        """True if nobody else remembers the last result: what all have forgotten never was."""
        if not self.certified:
            return False
        last = max(self.certified)
        result = self.certified[last].result
        return not any(
            node.round > last
            or (node.round == last and node.held is not None and node.held[0] == result)
            for node in self.nodes.values()
            if node.peer != peer
        )

    def kill(self, peer: PeerId) -> None:
        """As kill -9: memory is gone, the last checkpoint is not."""
        del self.nodes[peer]
        self.mail = [(a, b, m) for a, b, m in self.mail if peer not in (a, b)]

    def leave(self, peer: PeerId) -> None:
        """Its user stops it: a farewell, unless it is bound. Its state stays, as a checkpoint."""
        node = self.nodes[peer]
        if node.rounds.bound is None:
            self.left[peer] = node.round
        self.saved[peer] = (node.round, node.root, node.rounds.certificate)
        self.kill(peer)

    def load(self, node: Node, other: Node) -> None:
        """Fetch another's state."""
        node.round, node.root = other.round, other.root
        node.rounds.adopt(other.rounds.certificate)

    def submit(self, node: Node) -> None:
        """Its trainer has a contribution."""
        weight = self.random.choice([0.0, 1.0, 1.0])
        is_new = node.joined == node.round
        ready = Ready(
            "run", node.round, node.root, 0.0 if is_new else weight, ELEMENTS, "float32",
            is_new=is_new,
        )  # fmt: skip
        node.rounds.submit(ready)
        self.announce(node)

    # -- messages ----------------------------------------------------------------------------

    def are_linked(self, one: PeerId, other: PeerId) -> bool:
        """False across a partition."""
        return (one in self.parted) == (other in self.parted)

    def send(self, source: PeerId, target: PeerId, message: object) -> None:
        """Put it on its way, or lose it."""
        if self.are_linked(source, target) and self.random.random() >= self.loss:
            self.mail.append((source, target, message))

    def announce(self, node: Node) -> None:
        """Say to all that we are ready."""
        if node.rounds.mine is not None and node.rounds.ballot is None:
            for peer in self.nodes:
                if peer != node.peer:
                    self.send(node.peer, peer, node.rounds.mine)

    def step(self) -> None:
        """One thing happens."""
        is_calm = self.disorder < len(self.nodes) ** 2
        if self.mail and self.random.random() < (0.97 if is_calm else 0.8):
            self.now += self.random.random() * (0.01 if is_calm else 0.1)
            source, target, message = self.mail.pop(
                self.random.randrange(min(self.disorder, len(self.mail)))
            )
            if target in self.nodes:
                self.take(self.nodes[target], source, message)
            return
        self.now += self.random.random() * 0.1
        node = self.random.choice(list(self.nodes.values()))
        if self.random.random() < 0.3:
            self.announce(node)
        self.tick(node)

    def tick(self, node: Node) -> None:
        """Let a node look at the clock; now and then, its attempt runs out of time."""
        node.rounds.see(live=list(self.nodes), left=self.left)
        ballot = node.rounds.ballot
        if ballot is not None:
            haste = self.haste if ballot.proposer != node.peer else 0.05
            if not self.is_led(ballot):
                haste = 0.5
            if self.random.random() < haste:
                self.give_up(node)
        for effect in node.rounds.tick(self.now):
            match effect:
                case Propose(prepare):
                    node.tally = Tally(prepare)
                    self.adopted += prepare.adopt is not None
                    for member in prepare.members:
                        if member != node.peer:
                            self.send(node.peer, member, Order(prepare))
                    self.join(node, prepare)
                case Behind() | Diverged():
                    self.catch_up(node, node.round)

    def is_led(self, ballot: Ballot) -> bool:
        """False if its proposer is gone, or has left it: the stream breaks."""
        proposer = self.nodes.get(ballot.proposer)
        tally = proposer.tally if proposer is not None else None
        return tally is not None and tally.prepare.ballot == ballot

    def give_up(self, node: Node) -> None:
        """Nothing has come for too long."""
        ballot, tally = node.rounds.ballot, node.tally
        assert ballot is not None
        if tally is not None and tally.prepare.ballot == ballot:
            self.end(node, Aborted(tally.missing() - {node.peer}))
        else:
            node.rounds.failed(ballot, {ballot.proposer})
            self.announce(node)

    def catch_up(self, node: Node, at_least: int) -> None:
        """Fetch a state, if somebody in reach has one."""
        node.rounds.withdraw()
        later = [
            other
            for other in self.nodes.values()
            if other.round >= at_least
            and other is not node
            and self.are_linked(other.peer, node.peer)
        ]
        if later:
            self.load(node, max(later, key=lambda other: other.round))
        self.submit(node)

    # -- what a driver does ------------------------------------------------------------------

    def take(self, node: Node, source: PeerId, message: object) -> None:
        """Handle one message at its receiver."""
        match message:
            case Ready():
                self.hear(node, source, message)
            case Heard(ready, certificate):
                if ready is not None:
                    node.rounds.hear(source, ready)
                if certificate is not None:
                    self.learn(node, certificate)
            case Order(body):
                self.obey(node, source, body)
            case Answer(body):
                self.count_in(node, source, body)

    def hear(self, node: Node, source: PeerId, ready: Ready) -> None:
        node.rounds.hear(source, ready)
        heard = Heard(node.rounds.mine, node.rounds.ending(ready.round))
        self.send(node.peer, source, heard)

    def join(self, node: Node, prepare: Prepare) -> None:
        """Say ACK; the data begins to flow."""
        node.pledge = Pledge(prepare, node.signer, bytes(32))
        self.joins.setdefault((prepare.round, prepare.ballot), set()).add(node.peer)
        self.say(node, prepare.proposer, node.pledge.ack(node.rounds.bound, None))

    def say(self, node: Node, proposer: PeerId, body: Ack | Nack | Done) -> None:
        if proposer == node.peer:
            self.count_in(node, node.peer, body)
        else:
            self.send(node.peer, proposer, Answer(body))

    def obey(self, node: Node, source: PeerId, body: object) -> None:
        pledge = node.pledge
        if isinstance(body, Prepare):
            reason = node.rounds.offered(body)
            if reason:
                self.send(node.peer, source, Answer(node.rounds.refusal(body, reason)))
            else:
                self.join(node, body)
        elif isinstance(body, Commit):
            self.learn(node, body.certificate)
        elif pledge is None or pledge.prepare.ballot != node.rounds.ballot:
            return  # of an attempt that we have left
        elif pledge.prepare.proposer != source:
            return
        elif isinstance(body, Go) and pledge.told is None:
            pledge.go(body)
        elif isinstance(body, Abort):
            node.rounds.failed(pledge.prepare.ballot, body.excluded, is_void=body.is_void)
            self.announce(node)

    def work(self, node: Node) -> None:
        """The data of its attempt may be complete: then it signs."""
        pledge = node.pledge
        if pledge is None or pledge.prepare.ballot != node.rounds.ballot:
            return
        prepare = pledge.prepare
        if pledge.shards is None:
            pledge.shards = self.data_of(node, prepare)
        try:
            done = pledge.done()
        except BadMessage:
            raise AssertionError("another result than the one to adopt") from None
        if done is not None and pledge.bound is not None and pledge.shards is not None:
            node.held = (pledge.bound.result, pledge.shards)
            node.rounds.hold(pledge.bound)
            self.say(node, prepare.proposer, done)

    def data_of(self, node: Node, prepare: Prepare) -> list[bytes] | None:
        """The hashes of the result, if its data can have come."""
        here = self.joins[prepare.round, prepare.ballot]
        if prepare.adopt is not None:
            for member in here & set(prepare.members) & self.nodes.keys():
                held = self.nodes[member].held
                if held is not None and held[0] == prepare.adopt.result:
                    return held[1]
            return None
        needed = {m for m, w in zip(prepare.members, prepare.weights, strict=True) if w > 0}
        if not needed <= here:
            return None
        name = f"{prepare.ballot} {prepare.members} {prepare.weights}".encode()
        return [hashlib.sha256(name).digest()] * len(prepare.members)

    def count_in(self, node: Node, source: PeerId, body: Ack | Nack | Done) -> None:
        tally = node.tally
        if tally is None or source not in tally.prepare.members:
            return
        if isinstance(body, Done) and (tally.sent_go is None or source in tally.dones):
            return  # of an earlier attempt of ours
        if isinstance(body, Ack) and source in tally.acks:
            return
        decision: object = None
        match body:
            case Ack():
                decision = tally.ack(source, body)
            case Done():
                decision = tally.done(source, body)
            case Nack():
                decision = tally.refused(source, body)
        if isinstance(decision, Go):
            for member in tally.prepare.members:
                if member != node.peer:
                    self.send(node.peer, member, Order(decision))
            if node.pledge is not None and node.pledge.prepare is tally.prepare:
                node.pledge.go(decision)
        elif isinstance(decision, Certificate | Aborted):
            self.end(node, decision)

    def end(self, node: Node, outcome: Certificate | Aborted) -> None:
        tally, node.tally = node.tally, None
        assert tally is not None
        if isinstance(outcome, Certificate):
            self.certify(outcome)
            order = Order(Commit(outcome))
        else:
            order = Order(Abort(sorted(outcome.excluded), outcome.is_void))
        for member in tally.prepare.members:
            if member != node.peer:
                self.send(node.peer, member, order)
        if isinstance(outcome, Certificate):
            self.learn(node, outcome)
            return
        if outcome.certificate is not None:
            self.learn(node, outcome.certificate)
        node.rounds.failed(
            tally.prepare.ballot,
            outcome.excluded,
            stale=outcome.stale,
            attempt=outcome.attempt,
            bounds=outcome.bounds,
            is_void=outcome.is_void,
        )
        self.announce(node)

    def learn(self, node: Node, certificate: Certificate) -> None:
        """The driver's `_learn`, and a trainer that begins the next round at once."""
        mine = node.rounds.mine
        if mine is None or certificate.round < mine.round:
            return
        if not node.rounds.electorate.is_quorum(certificate.members):
            return
        if certificate.round == mine.round and node.held and node.held[0] == certificate.result:
            node.rounds.committed(certificate)
            node.root, node.round = next_root(node.root, certificate.result), node.round + 1
            node.held = node.pledge = None
            assert self.roots.setdefault(node.round, node.root) == node.root, "two histories"
            if self.random.random() < 0.5:
                self.saved[node.peer] = (node.round, node.root, certificate)
            self.submit(node)
        else:
            self.catch_up(node, certificate.round + 1)

    def certify(self, certificate: Certificate) -> None:
        """The one thing that must never be: two results of one round."""
        first = self.certified.setdefault(certificate.round, certificate)
        assert first.result == certificate.result, f"two results of round {certificate.round}"
        assert first.contributors == certificate.contributors
        assert first.weights == certificate.weights

    def everybody_works(self) -> None:
        """Data arrives wherever it can."""
        for node in list(self.nodes.values()):
            self.work(node)
