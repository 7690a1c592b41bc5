"""What we hold for others: each refusal with its reason, and bounds that nobody gets around."""

import random
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from dht import holding
from dht.holding import NO_ROOM, OVERSIZED, STALE, UNSIGNED, Holding
from dht.key import KEY_BITS, common_bits, key_of
from dht.messages import Moment, Provision, Value
from dht.records import EXPIRED, LASTING, LIFE_MAX_MS, STAMP_MAX
from wire.ids import PeerId

NOW_MS = 1_800_000_000_000
NOW = Moment(0.0, NOW_MS)
SENDER = PeerId("sender")
NAME = b"name"


def at(after_ms: int) -> Moment:
    return Moment(after_ms / 1000, NOW_MS + after_ms)


def provision(
    peer: str = "alice", name: bytes = NAME, after_ms: int = 1000, sealed: bytes = b"sealed"
) -> Provision:
    return Provision(name, PeerId(peer), NOW_MS + after_ms, sealed)


def value(
    author: str = "alice", name: bytes = NAME, seq: int = 1, after_ms: int = 1000, size: int = 0
) -> Value:
    data = bytes(size)
    sealed = b"%d %d " % (seq, after_ms) + data
    return Value(name, PeerId(author), seq, NOW_MS + after_ms, data, sealed)


def key_value(name: bytes = b"/pk/x") -> Value:
    return Value(name, None, 0, STAMP_MAX, b"key", b"key")


def add(
    held: Holding, record: Provision | Value, moment: Moment = NOW, sender: str = SENDER
) -> str:
    if isinstance(record, Value):
        return held.add_value(record, PeerId(sender), moment)
    return held.add_provision(record, PeerId(sender), moment, is_public=False)


@pytest.fixture
def held() -> Holding:
    return Holding(bytes(32))


@pytest.mark.parametrize("make", [provision, value])
def test_live_records_are_handed_out_and_the_dead_forgotten(held: Holding, make: Any) -> None:
    for number, peer in enumerate("abc", 1):
        assert add(held, make(peer, after_ms=number * 1000)) == ""

    def found(moment: Moment) -> set[Provision | Value]:
        return {*held.provisions(NAME, moment.wall_ms), *held.values(NAME, moment.wall_ms)}

    assert len(found(NOW)) == 3
    assert found(at(2000)) == {make("c", after_ms=3000)}
    assert len(held) == 3
    held.expire(at(2000).wall_ms)
    assert len(held) == 1
    held.expire(at(3000).wall_ms)
    assert len(held) == 0
    assert held.names() == []


@pytest.mark.parametrize("make", [provision, value])
def test_expired_and_too_lasting_records_are_refused(held: Holding, make: Any) -> None:
    assert add(held, make(after_ms=0)) == EXPIRED
    assert add(held, make(after_ms=LIFE_MAX_MS + 30_001)) == LASTING
    assert len(held) == 0


def test_unsigned_records_are_refused_in_a_swarm_of_our_own(held: Holding) -> None:
    assert add(held, provision(sealed=b""), sender="alice") == UNSIGNED
    assert held.add_value(Value(NAME, SENDER, 1, NOW_MS + 1, b"", b""), SENDER, NOW) == UNSIGNED
    assert len(held) == 0


def test_in_public_unsigned_provider_records_are_the_providers_own_to_bring(held: Holding) -> None:
    unsigned = provision(after_ms=0, sealed=b"")
    assert held.add_provision(unsigned, PeerId("bob"), NOW, is_public=True) == UNSIGNED
    assert held.add_provision(unsigned, PeerId("alice"), NOW, is_public=True) == ""
    assert held.add_provision(unsigned, PeerId("alice"), NOW, is_public=True) == ""
    assert [it.expires_ms for it in held.provisions(NAME, NOW_MS)] == [NOW_MS + LIFE_MAX_MS]
    signed = provision(after_ms=5000)
    assert held.add_provision(signed, SENDER, NOW, is_public=True) == ""
    assert held.add_provision(unsigned, PeerId("alice"), at(1), is_public=True) == ""
    assert held.provisions(NAME, NOW_MS) == (signed,)  # it can be handed over
    assert held.signed(NAME, NOW_MS) == (signed,)


def test_oversized_names_are_refused(held: Holding) -> None:
    for name in (b"", b"n" * 257):
        assert add(held, provision(name=name)) == OVERSIZED
    assert len(held) == 0


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (provision(after_ms=1000), provision(after_ms=2000)),
        (value(seq=1, after_ms=2000), value(seq=2, after_ms=1000)),
        (value(seq=2, size=3), value(seq=2, size=2)),
        (value(seq=2, after_ms=1000), value(seq=2, after_ms=2000)),
    ],
)
def test_stale_and_replayed_records_are_refused(
    held: Holding, old: Provision | Value, new: Provision | Value
) -> None:
    assert add(held, old) == add(held, new) == ""
    assert add(held, new) == ""  # the same once more: nothing changes
    assert add(held, old) == STALE
    assert held.provisions(NAME, NOW_MS) + held.values(NAME, NOW_MS) == (new,)
    assert len(held) == 1


def test_a_public_key_lives_a_day_after_it_was_stored_last(held: Holding) -> None:
    assert add(held, key_value()) == ""
    assert add(held, key_value(), at(1000)) == ""
    assert len(held.values(b"/pk/x", at(LIFE_MAX_MS + 999).wall_ms)) == len(held) == 1
    assert held.values(b"/pk/x", at(LIFE_MAX_MS + 1000).wall_ms) == ()
    assert held.signed(b"/pk/x", NOW_MS) == ()


def test_what_is_handed_over_was_there_before(held: Holding) -> None:
    add(held, provision("a"), Moment(5.0, NOW_MS))
    add(held, provision("b"), Moment(6.0, NOW_MS))
    add(held, provision("a"), Moment(7.0, NOW_MS))  # a replay changes nothing
    assert held.since_s(NAME) == 5.0
    assert [it.peer for it in held.provisions(NAME, NOW_MS) if it in held.signed(NAME, NOW_MS)]
    before = held.signed(NAME, NOW_MS, before_s=6.0)
    assert before == (provision("a"),)
    assert held.signed(b"other", NOW_MS) == ()
    assert held.since_s(b"other") == float("inf")


def test_names_are_found_by_their_keys(held: Holding) -> None:
    names = [b"%d" % number for number in range(300)]
    for name in names[:200]:
        add(held, provision(name=name))
    for name in names[100:]:
        add(held, value(name=name))
    everything = sorted((key_of(name), name) for name in names)
    assert held.names() == everything
    near = key_of(b"near")
    for bits in (1, 4, KEY_BITS):
        expected = [it for it in everything if common_bits(it[0], near) >= bits]
        assert held.names(near, bits) == expected
    assert held.names(key_of(names[7]), KEY_BITS) == [(key_of(names[7]), names[7])]


def test_expiry_takes_a_bounded_time(held: Holding, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(holding, "EXPIRED_MAX", 3)
    for number in range(5):
        add(held, provision(name=b"%d" % number))
    held.expire(at(1000).wall_ms)
    assert len(held) == 2
    assert not any(held.provisions(b"%d" % number, at(1000).wall_ms) for number in range(5))
    held.expire(at(1000).wall_ms)
    assert len(held) == 0


# --- bounds --------------------------------------------------------------------------------------


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Bounds that tests can reach."""
    with monkeypatch.context() as patch:
        shrink(patch)
        yield


def shrink(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(holding, "PROVIDERS_MAX", 4)
    patch.setattr(holding, "PROVISIONS_OF_PEER_MAX", 5)
    patch.setattr(holding, "PROVISION_BYTES_MAX", 12 * (holding.RECORD_BYTES + 16))
    patch.setattr(holding, "AUTHORS_MAX", 4)
    patch.setattr(holding, "VALUES_OF_NAME_BYTES", 1000)
    patch.setattr(holding, "VALUES_OF_AUTHOR_MAX", 5)
    patch.setattr(holding, "VALUE_BYTES_MAX", 12 * (holding.RECORD_BYTES + 200))


def everything(held: Holding) -> set[Provision | Value]:
    found = [name for _, name in held.names()]
    return {it for name in found for it in held.signed(name, NOW_MS)}


CROWDS: dict[str, Sequence[Provision | Value]] = {
    "of one name": [provision(f"peer {i}") for i in range(12)],
    "of one owner": [provision(name=b"%d" % i) for i in range(12)],
    "of everybody": [provision(f"peer {i % 7}", b"%02d" % i) for i in range(28)],
    "values of one name": [value(f"peer {i}") for i in range(12)],
    "values of one author": [value(name=b"%d" % i) for i in range(12)],
    "large values of one name": [value(f"peer {i}", size=300) for i in range(12)],
}


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("crowd", CROWDS)
def test_who_came_first_or_comes_often_gains_nothing(crowd: str) -> None:
    rng, records = random.Random(1), CROWDS[crowd]
    favoured = records[0]
    kept = places = 0
    for number in range(60):  # nodes, each with a secret of its own
        secret = b"secret %09d" % number
        first, often, last = Holding(secret), Holding(secret), Holding(secret)
        for record in records:
            add(first, record)
        for record in [*rng.choices(records[1:], k=60), *records[1:], favoured]:
            add(last, record)
        for record in [it for other in records for it in (other, favoured)]:
            add(often, record)
        assert everything(first) == everything(often) == everything(last)
        kept += favoured in everything(first)
        places += len(first)
    fair = places / len(records)  # of 60: what everybody gets on average
    assert 0.5 * fair < kept < 1.6 * fair < 60


@pytest.mark.usefixtures("small")
def test_a_few_identities_that_send_everything_drive_nobody_out() -> None:
    held = Holding(bytes(32))
    honest = [provision(f"honest {i}", b"honest %d" % i) for i in range(6)]
    for record in honest:
        assert add(held, record) == ""
    for number in range(100):
        add(held, provision(f"flood {number % 3}", b"%d" % number))
    assert everything(held) >= set(honest)
    assert add(held, provision("late", b"late")) == ""
    owners = Counter(it.peer for it in everything(held) if isinstance(it, Provision))
    assert max(owners.values()) <= 2


@pytest.mark.usefixtures("small")
def test_who_brings_what_nobody_signed_pays_for_it() -> None:
    held = Holding(bytes(32))
    for number in range(50):
        add(held, key_value(b"/pk/%d" % number), sender="flood")
    assert len(held) == holding.VALUES_OF_AUTHOR_MAX
    assert add(held, key_value(b"/pk/honest"), sender="honest") == ""


@pytest.mark.usefixtures("small")
def test_no_room_leaves_things_as_they_are() -> None:
    held = Holding(bytes(32))
    records = [provision(f"peer {i}") for i in range(12)]
    for record in records:
        before = everything(held)
        reason = add(held, record)
        assert reason in ("", NO_ROOM)
        assert everything(held) == before if reason else record in everything(held)
    assert NO_ROOM in [add(held, record) for record in records]


@pytest.mark.usefixtures("small")
def test_a_value_that_grows_over_the_bounds_of_its_name_does_not_lose_its_place() -> None:
    held = Holding(bytes(32))
    small_ones = [value(f"peer {i}", size=200) for i in range(4)]
    for record in small_ones:
        assert add(held, record) == ""
    worst = held.values(NAME, NOW_MS)[-1]
    assert add(held, value(worst.author or "", seq=2, size=800)) == NO_ROOM
    assert everything(held) == set(small_ones)
    best = held.values(NAME, NOW_MS)[0]
    assert add(held, grown := value(best.author or "", seq=2, size=500)) == ""
    assert grown in everything(held)
    assert worst not in everything(held)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("make", [provision, value])
def test_renewing_where_there_is_no_room_drives_nobody_out(make: Any) -> None:
    held = Holding(bytes(32))
    for number in range(4):
        assert add(held, make(f"peer {number}", after_ms=1000)) == ""
    renewed = [make(f"peer {number}", after_ms=2000) for number in range(4)]
    assert [add(held, record) for record in renewed] == [""] * 4
    assert everything(held) == set(renewed)


class Bounds(RuleBasedStateMachine):
    """Whatever is sent: nothing over a bound, nothing expired, nothing that was refused."""

    peers = st.sampled_from("abcdefgh")
    names = st.sampled_from([b"%d" % number for number in range(12)])
    lives = st.integers(-1, 5).map(lambda it: it * 1000)

    @initialize(secret=st.binary(min_size=16, max_size=16))
    def begin(self, secret: bytes) -> None:
        self.patch = pytest.MonkeyPatch()
        shrink(self.patch)
        self.held = Holding(secret)
        self.now = NOW

    def teardown(self) -> None:
        if hasattr(self, "patch"):
            self.patch.undo()

    @rule(peer=peers, name=names, life=lives, sender=peers, is_signed=st.booleans())
    def provide(self, peer: str, name: bytes, life: int, sender: str, is_signed: bool) -> None:
        sealed = b"sealed" if is_signed else b""
        record = provision(peer, name, self.now.wall_ms - NOW_MS + life, sealed)
        before = len(self.held)
        reason = self.held.add_provision(record, PeerId(sender), self.now, is_public=True)
        found = {(it.peer, it.sealed) for it in self.held.provisions(name, self.now.wall_ms)}
        if reason == "":
            assert (peer, sealed) in found or (peer, b"sealed") in found
        else:
            assert record not in self.held.provisions(name, self.now.wall_ms)
            assert len(self.held) <= before
        assert (life > 0) or not is_signed or reason == EXPIRED

    @rule(peer=peers, name=names, life=lives, seq=st.integers(1, 3), size=st.integers(0, 900))
    def put(self, peer: str, name: bytes, life: int, seq: int, size: int) -> None:
        record = value(peer, name, seq, self.now.wall_ms - NOW_MS + life, size)
        reason = add(self.held, record, self.now)
        assert (record in self.held.values(name, self.now.wall_ms)) == (reason == "")

    @rule(name=names, sender=peers)
    def put_key(self, name: bytes, sender: str) -> None:
        reason = add(self.held, key_value(b"/pk/" + name), self.now, sender)
        assert bool(self.held.values(b"/pk/" + name, self.now.wall_ms)) >= (reason == "")

    @rule(step_ms=st.integers(0, 3000))
    def wait(self, step_ms: int) -> None:
        self.now = at(self.now.wall_ms - NOW_MS + step_ms)
        self.held.expire(self.now.wall_ms)

    @invariant()
    def within_the_bounds(self) -> None:
        if not hasattr(self, "held"):
            return
        names = [name for _, name in self.held.names()]
        assert self.held.names() == sorted((key_of(name), name) for name in names)
        provisions = {name: self.held.provisions(name, 0) for name in names}
        values = {name: self.held.values(name, 0) for name in names}
        assert len(self.held) == sum(map(len, [*provisions.values(), *values.values()]))
        assert all(provisions[name] or values[name] for name in names)
        assert all(len(found) <= holding.PROVIDERS_MAX for found in provisions.values())
        assert all(len(found) <= holding.AUTHORS_MAX for found in values.values())
        for found in values.values():
            sizes = [len(it.sealed) + len(it.name) for it in found]
            assert sum(sizes) <= holding.VALUES_OF_NAME_BYTES
        for kept, of_owner, in_all in (
            (provisions, holding.PROVISIONS_OF_PEER_MAX, holding.PROVISION_BYTES_MAX),
            (values, holding.VALUES_OF_AUTHOR_MAX, holding.VALUE_BYTES_MAX),
        ):
            records: list[Any] = [it for found in kept.values() for it in found]
            owners = Counter(getattr(it, "peer", "") or it.author for it in records)
            owners.pop(None, None)
            assert max(owners.values(), default=0) <= of_owner
            sizes = [len(it.name) + len(it.sealed) + holding.RECORD_BYTES for it in records]
            assert sum(sizes) <= in_all


Bounds.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestBounds = Bounds.TestCase
