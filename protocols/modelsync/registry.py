"""What the replicated store knows of runs: leases of members, and certificates of rounds.

Values hold 2 KiB, so a certificate is cut into parts. Each publisher writes under its own name,
which nobody else may, and readers believe only what the members signed.
"""

import logging
from collections import defaultdict

import msgspec

from protocols.modelsync.wire import Certificate, Shape
from wire.errors import ShoalError
from wire.ids import PeerId
from wire.ports import Item, Store

NAMESPACE = "runs"
CERTIFICATES_KEPT_S = 24 * 3600.0  # seconds that certificates stay in the store
PART_BYTES = 1900  # a store value holds 2 KiB: 14 members a part
PARTS_MAX = 5  # of one certificate: 64 members, signatures included, are 8.5 KiB
LOOK_BACK_MAX = 8  # rounds looked at for a certificate that holds: the rest is nonsense
CHECKED_MAX = 4096  # certificates whose signatures need no second look

_log = logging.getLogger(__name__)


class MemberLease(msgspec.Struct, forbid_unknown_fields=False):
    """The value under `NAME/member/@PEER`."""

    round: int = 0
    left: bool = False
    elements: int = 0
    codec: str = ""
    rounds: int = 0
    settings: str = ""

    @property
    def shape(self) -> Shape:
        """The shape of the run as this member has it."""
        return Shape(self.elements, self.codec, self.settings)


class Registry:
    """The runs in the store, as one node reads and writes them."""

    def __init__(self, store: Store, me: PeerId) -> None:
        self._store, self._me = store, me
        self._checked: dict[bytes, Certificate | None] = {}

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

    async def publish(self, certificate: Certificate) -> None:
        """Put a certificate into the store, in parts under our own name."""
        data = msgspec.msgpack.encode(certificate)
        prefix = f"{certificate.run}/round/{certificate.round:08d}/@{self._me}"
        try:
            for part, start in enumerate(range(0, len(data), PART_BYTES)):
                value = data[start : start + PART_BYTES]
                key = f"{prefix}/{part}"
                await self._store.put(NAMESPACE, key, value, ttl_s=CERTIFICATES_KEPT_S)
        except ShoalError as error:
            _log.warning("run.publish_failed run=%s error=%s", certificate.run, error)

    def certificates(self, run: str, round_: int | None = None) -> list[Certificate]:
        """Signed certificates of a run, or of one of its rounds, oldest first, one per round."""
        prefix = f"{run}/round/" + ("" if round_ is None else f"{round_:08d}/")
        found: dict[int, Certificate] = {}
        parts: defaultdict[str, list[Item]] = defaultdict(list)
        for item in self._store.scan(NAMESPACE, prefix):
            parts[item.key.rpartition("/")[0]].append(item)
        for key, items in parts.items():
            certificate = self._certificate(items)
            if certificate is None or certificate.run != run:
                continue
            if key.startswith(f"{run}/round/{certificate.round:08d}/@"):
                found.setdefault(certificate.round, certificate)
        return [found[number] for number in sorted(found)]

    def last_certificate(self, run: str) -> Certificate | None:
        """The signed certificate of the latest round that has one."""
        keys = [item.key.split("/") for item in self._store.scan(NAMESPACE, f"{run}/round/")]
        rounds = {int(key[2]) for key in keys if len(key) > 2 and key[2].isdecimal()}
        for number in sorted(rounds, reverse=True)[:LOOK_BACK_MAX]:
            if found := self.certificates(run, number):
                return found[0]
        return None

    def _certificate(self, items: list[Item]) -> Certificate | None:
        """Join the parts; None if they are no certificate that its members signed."""
        if len(items) > PARTS_MAX:
            return None
        data = b"".join(item.value for item in items if isinstance(item.value, bytes))
        if data not in self._checked:
            while len(self._checked) >= CHECKED_MAX:
                del self._checked[next(iter(self._checked))]
            self._checked[data] = _signed(data)
        return self._checked[data]


def _signed(data: bytes) -> Certificate | None:
    try:
        certificate = msgspec.msgpack.decode(data, type=Certificate)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        return None  # another member's nonsense
    return certificate if certificate.is_signed() else None
