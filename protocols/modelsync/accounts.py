"""What each member has brought to the rounds of a run that this node took part in."""

from collections import Counter, defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from protocols.modelsync.part import Contribution
from protocols.modelsync.wire import Certificate
from wire.ids import PeerId

PEERS_MAX = 1024  # with an account: more than a run has members; further ones are not counted


@dataclass
class Accounts:
    """The table of one run, all lanes together."""

    _rounds: Counter[PeerId] = field(default_factory=Counter[PeerId])
    _weights: defaultdict[PeerId, float] = field(default_factory=lambda: defaultdict(float))
    _left_out: Counter[PeerId] = field(default_factory=Counter[PeerId])
    _bytes_in: Counter[PeerId] = field(default_factory=Counter[PeerId])
    _bytes_out: Counter[PeerId] = field(default_factory=Counter[PeerId])
    _seconds: defaultdict[PeerId, float] = field(default_factory=lambda: defaultdict(float))
    _banned: set[PeerId] = field(default_factory=set[PeerId])

    def committed(self, certificate: Certificate) -> None:
        """A round was committed here."""
        self._rounds.update(self._known(certificate.members))
        for peer, weight in zip(certificate.contributors, certificate.weights, strict=True):
            if self._known([peer]):
                self._weights[peer] += weight

    def moved(self, bytes_by_peer: Mapping[PeerId, tuple[int, int]]) -> None:
        """An attempt has moved this much, in and out, whatever came of it."""
        for peer in self._known(bytes_by_peer):
            taken, given = bytes_by_peer[peer]
            self._bytes_in[peer] += taken
            self._bytes_out[peer] += given

    def left_out(self, peers: Collection[PeerId]) -> None:
        """An attempt goes on without these."""
        self._left_out.update(self._known(peers))

    def waited(self, peer: PeerId, seconds: float) -> None:
        """We were ready this long before a member was."""
        if self._known([peer]) and len(self._seconds) < PEERS_MAX:
            self._seconds[peer] += seconds

    def ban(self, peer: PeerId) -> None:
        """A member was found guilty."""
        self._banned.add(peer)

    def table(self) -> list[Contribution]:
        """Return one line for each member, those with most rounds first."""
        peers = self._rounds.keys() | self._left_out.keys() | self._bytes_in.keys() | self._banned
        lines = [
            Contribution(
                peer=peer,
                rounds=self._rounds[peer],
                weight=self._weights.get(peer, 0.0),
                left_out=self._left_out[peer],
                bytes_in=self._bytes_in[peer],
                bytes_out=self._bytes_out[peer],
                seconds=self._seconds.get(peer, 0.0),
                banned=peer in self._banned,
            )
            for peer in peers
        ]
        return sorted(lines, key=lambda line: (-line.rounds, line.peer))

    def _known(self, peers: Collection[PeerId]) -> list[PeerId]:
        """Those of these that have an account, or for whom there is room."""
        room = PEERS_MAX - len(self._rounds.keys() | self._left_out.keys() | self._bytes_in.keys())
        return [peer for peer in peers if peer in self._rounds or room > 0]
