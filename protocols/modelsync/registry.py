"""What the replicated store knows of runs: leases of members, and certificates of rounds.

Values hold 2 KiB, so a certificate is cut into parts. Each publisher writes under its own name,
which nobody else may, and readers believe only what the members signed. An author may have 10,000
entries in a namespace, so a lane's certificates go into a ring of slots: the last rounds stay.
"""

import logging
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import replace

import msgspec

from protocols.modelsync.ballots import Electorate
from protocols.modelsync.wire import Certificate, Shape
from wire.errors import ShoalError
from wire.ids import PeerId
from wire.ports import Item, Store

NAMESPACE = "runs"
CERTIFICATES_KEPT_S = 24 * 3600.0  # seconds that certificates stay in the store
PART_BYTES = 1900  # a store value holds 2 KiB
PARTS_MAX = 12  # of one certificate: 64 members of a sealed round are 19 KiB
ENTRIES_MAX = 8000  # of one run: an author may have 10,000, and leases want some
SLOTS_MAX = 64  # rounds kept of a lane: who was away longer fetches a state anyway
LOOK_BACK_MAX = 8  # rounds looked at for a certificate that holds: the rest is nonsense
CHECKED_MAX = 4096  # certificates whose signatures need no second look
_SLOTS = frozenset(f"{slot:03d}" for slot in range(SLOTS_MAX))
BOUND = -1  # in a farewell: the member signed a result and does not know how the round ended

_log = logging.getLogger(__name__)


class MemberLease(msgspec.Struct, forbid_unknown_fields=False):
    """The value under `NAME/member/@PEER`. `at`: the round that each lane would have next."""

    at: list[int] = []
    left: bool = False
    elements: int = 0
    codec: str = ""
    rounds: int = 0
    settings: str = ""

    @property
    def shape(self) -> Shape:
        """The shape of the run as this member has it."""
        return Shape(self.elements, self.codec, self.settings)

    def round_of(self, lane: int) -> int:
        """The round that a lane would have next; BOUND if nobody knows."""
        return self.at[lane] if lane < len(self.at) else 0


class _Part(msgspec.Struct, array_like=True, frozen=True):
    """One part of a certificate, as it lies in a slot: old parts may lie beside new ones."""

    round: int
    parts: int
    data: bytes


def slots_of(lanes: int) -> int:
    """How many rounds of each lane are kept, so that one author's entries stay bounded."""
    return max(2, min(SLOTS_MAX, ENTRIES_MAX // (lanes * PARTS_MAX)))


def preferred(certificates: Iterable[Certificate]) -> Certificate | None:
    """Of several of one round (sampled runs) the one with most members, then the lowest hash."""
    return min(certificates, key=lambda c: (-len(c.members), c.result), default=None)


class Registry:
    """The runs in the store, as one node reads and writes them."""

    def __init__(self, store: Store, me: PeerId) -> None:
        self._store, self._me = store, me
        self._checked: dict[bytes, Certificate | None] = {}
        self._given_up: set[bytes] = set()  # certificates of rounds whose states are lost

    def run_names(self) -> list[str]:
        """Every run that has a member in the swarm."""
        keys = (item.key for item in self._store.scan(NAMESPACE))
        return sorted({key.split("/", 1)[0] for key in keys if "/member/@" in key})

    def leases(self, run: str) -> dict[PeerId, MemberLease]:
        """Leases and farewells, each by its own member."""
        prefix = f"{run}/member/@"
        leases: dict[PeerId, MemberLease] = {}
        for item in self._store.scan(NAMESPACE, prefix):
            if item.key != prefix + item.author:
                continue
            try:
                leases[item.author] = msgspec.convert(item.value, MemberLease)
            except msgspec.ValidationError:
                continue  # another member's nonsense
        return leases

    async def put_lease(self, run: str, lease: MemberLease, ttl_s: float) -> None:
        """Write our own lease, or our farewell."""
        key = f"{run}/member/@{self._me}"
        try:
            await self._store.put(NAMESPACE, key, msgspec.to_builtins(lease), ttl_s=ttl_s)
        except ShoalError as error:
            _log.warning("run.lease_failed run=%s error=%s", run, error)

    async def publish(self, certificate: Certificate, *, lanes: int) -> None:
        """Put a certificate into its slot, in parts under our own name."""
        data = msgspec.msgpack.encode(certificate)
        slot = certificate.round % slots_of(lanes)
        prefix = f"{certificate.run}/round/{certificate.lane:03d}/{slot:03d}/@{self._me}"
        pieces = [data[at : at + PART_BYTES] for at in range(0, len(data), PART_BYTES)]
        try:
            for number, piece in enumerate(pieces):
                value = [certificate.round, len(pieces), piece]
                key = f"{prefix}/{number:02d}"
                await self._store.put(NAMESPACE, key, value, ttl_s=CERTIFICATES_KEPT_S)
        except ShoalError as error:
            _log.warning("run.publish_failed run=%s error=%s", certificate.run, error)

    def certificates(self, run: str, lane: int = 0) -> list[Certificate]:
        """Signed certificates of a lane's rounds, oldest first, one per round."""
        found = self._written(run, lane)
        chosen = [self._chosen(run, lane, number, found[number]) for number in sorted(found)]
        return [certificate for certificate in chosen if certificate is not None]

    def certificate(self, run: str, lane: int, round_: int) -> Certificate | None:
        """The signed certificate of one round, if the store has it."""
        return self._chosen(run, lane, round_, self._written(run, lane).get(round_, []))

    def last_certificate(
        self, run: str, lane: int = 0, electorate: Electorate | None = None
    ) -> Certificate | None:
        """The signed certificate of the latest round that has one; of a quorum, if given."""
        found = self._written(run, lane)
        if electorate is not None:
            found = {n: [d for d in found[n] if _is_of(d, electorate)] for n in found}
        for number in sorted((n for n in found if found[n]), reverse=True)[:LOOK_BACK_MAX]:
            certificate = self._chosen(run, lane, number, found[number])
            if certificate is not None:
                return certificate
        return None

    def makers(self, run: str, lane: int, electorate: Electorate) -> list[PeerId]:
        """Members of the latest certificate that follows what an electorate knows; where the store
        begins later (we were away for long), of the latest that there is.
        """
        chain = self.continuing(run, lane, electorate)
        last = chain[-1] if chain else self.last_certificate(run, lane)
        return last.members if last is not None else []

    def continuing(self, run: str, lane: int, electorate: Electorate) -> list[Certificate]:
        """The certificates that follow the last one that an electorate knows, without a gap: each
        made by a quorum of the members of the one before.
        """
        found, chain = self._written(run, lane), list[Certificate]()
        known, round_ = electorate, electorate.next_round
        while round_ in found:
            fitting = (self._fitting(run, lane, round_, known, data) for data in found[round_])
            certificate = preferred(c for c in fitting if c is not None)
            if certificate is None:
                break
            chain.append(certificate)
            known, round_ = replace(known, certificate=certificate), round_ + 1
        return chain

    def give_up(self, run: str, lane: int, round_: int) -> None:
        """Nobody has a state after this round or a later one: do not believe any more what says
        that these rounds are over, so that they are made again (States.fetch).
        """
        for number, written in self._written(run, lane).items():
            if number >= round_:
                self._given_up.update(written)
        for peer, lease in self.leases(run).items():
            if lease.left and lease.round_of(lane) > round_:
                self._given_up.add(_farewell(run, lane, peer, lease.round_of(lane)))

    def is_given_up(self, run: str, lane: int, peer: PeerId, round_: int) -> bool:
        """True if the state that this member left with is lost."""
        return _farewell(run, lane, peer, round_) in self._given_up

    # -- inside ------------------------------------------------------------------------------

    def _fitting(
        self, run: str, lane: int, round_: int, electorate: Electorate, data: bytes
    ) -> Certificate | None:
        """The certificate, if it is of this round; signatures last, for they cost most."""
        certificate = _parsed(data)
        if certificate is None or not electorate.is_quorum(certificate.members):
            return None
        if (certificate.run, certificate.lane, certificate.round) != (run, lane, round_):
            return None
        return self._believed(data)

    def _written(self, run: str, lane: int) -> dict[int, list[bytes]]:
        """What is in the lane's slots, by the round that its publisher says."""
        slots: defaultdict[str, list[Item]] = defaultdict(list)
        for item in self._store.scan(NAMESPACE, f"{run}/round/{lane:03d}/"):
            prefix, _, number = item.key.rpartition("/")
            slot, _, author = prefix.removeprefix(f"{run}/round/{lane:03d}/").partition("/")
            if author == f"@{item.author}" and len(number) == 2 and slot in _SLOTS:
                slots[prefix].append(item)
        found: defaultdict[int, list[bytes]] = defaultdict(list)
        for items in slots.values():
            round_, data = _joined(items)
            if data:
                found[round_].append(data)
        return found

    def _chosen(self, run: str, lane: int, round_: int, written: list[bytes]) -> Certificate | None:
        believed = (self._believed(data) for data in written)
        of = (run, lane, round_)
        return preferred(c for c in believed if c is not None and (c.run, c.lane, c.round) == of)

    def _believed(self, data: bytes) -> Certificate | None:
        """The certificate, if its members signed it."""
        if data in self._given_up:
            return None
        if data not in self._checked:
            while len(self._checked) >= CHECKED_MAX:
                del self._checked[next(iter(self._checked))]
            self._checked[data] = _signed(data)
        return self._checked[data]


def _farewell(run: str, lane: int, peer: PeerId, round_: int) -> bytes:
    return f"{run}/{lane}/{peer}/{round_}".encode()


def _joined(items: list[Item]) -> tuple[int, bytes]:
    """Join the parts of one slot, in key order; nothing if they do not fit together."""
    try:
        parts = [msgspec.convert(item.value, _Part) for item in items]
    except msgspec.ValidationError:
        return 0, b""  # another member's nonsense
    first = parts[0]
    whole = [part for part in parts if (part.round, part.parts) == (first.round, first.parts)]
    if len(whole) != first.parts or first.parts > PARTS_MAX:
        return 0, b""  # half written
    return first.round, b"".join(part.data for part in whole)


def _parsed(data: bytes) -> Certificate | None:
    try:
        return msgspec.msgpack.decode(data, type=Certificate)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        return None  # another member's nonsense


def _is_of(data: bytes, electorate: Electorate) -> bool:
    certificate = _parsed(data)
    return certificate is not None and electorate.is_quorum(certificate.members)


def _signed(data: bytes) -> Certificate | None:
    certificate = _parsed(data)
    return certificate if certificate is not None and certificate.is_signed() else None
