"""Certificates and leases in the store: whole, bounded, and believed only if they are signed."""

from typing import Any

import msgspec
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock

from protocols.modelsync import wire
from protocols.modelsync.ballots import Electorate
from protocols.modelsync.registry import PARTS_MAX, MemberLease, Registry, slots_of
from protocols.modelsync.wire import LANES_MAX, MEMBERS_MAX, ROUNDS_MAX, Certificate
from tests.sim.training import SharedStore
from wire.ids import Signer

SIGNERS = sorted((Signer(bytes([n + 1]) * 32) for n in range(MEMBERS_MAX)), key=lambda s: s.peer)
A, B = (signer.peer for signer in SIGNERS[:2])
ROOT, OTHER = b"s" * 32, b"x" * 32
ENTRIES = 10_000  # of one author in one namespace: what the store allows


def certificate(
    count: int,
    round_: int,
    *,
    start: int = 0,
    run: str = "run",
    lane: int = 0,
    sealed: bool = False,
) -> Certificate:
    signers = SIGNERS[start : start + count]
    members = [signer.peer for signer in signers]
    unsigned = Certificate(
        run, round_, 0, members[0], members, members, [1.0] * count, "int8", ROOT, OTHER, lane
    )
    reveals = tuple(bytes([n]) * 32 for n in range(count)) if sealed else ()
    if sealed:
        seals = tuple(wire.seal_of(reveal) for reveal in reveals)
        unsigned = msgspec.structs.replace(unsigned, seals=seals, commitments=(ROOT,) * count)
    signatures = tuple(s.sign(wire.CERTIFICATE_TAG, unsigned.body()) for s in signers)
    return msgspec.structs.replace(unsigned, signatures=signatures, reveals=reveals)


@pytest.mark.parametrize("sealed", [False, True])
@pytest.mark.parametrize("count", [1, 13, 14, 15, 64])
async def test_a_certificate_of_any_size_is_stored_whole_with_its_signatures(
    autojump_clock: MockClock, count: int, sealed: bool
) -> None:
    store = SharedStore(A, {})
    registry = Registry(store, A)
    both = [certificate(count, round_, sealed=sealed) for round_ in (0, 1)]
    for one in both:
        await registry.publish(one, lanes=1)
    assert registry.certificates("run") == both
    assert registry.certificate("run", 0, 1) == both[1]
    assert registry.certificate("run", 0, 2) is None
    assert registry.last_certificate("run") == both[1]
    assert len(store.items) <= 2 * PARTS_MAX
    assert all(len(msgspec.msgpack.encode(i.value)) <= 2048 for i, _ in store.items.values())


@pytest.mark.parametrize("lanes", [1, 7, LANES_MAX])
def test_an_authors_entries_stay_bounded_however_many_lanes(lanes: int) -> None:
    assert slots_of(lanes) >= 2
    assert lanes * slots_of(lanes) * PARTS_MAX + 1 <= ENTRIES


async def test_old_rounds_make_room_for_new_ones_also_if_those_are_smaller(
    autojump_clock: MockClock,
) -> None:
    store = SharedStore(A, {})
    registry = Registry(store, A)
    slots = slots_of(LANES_MAX)
    for round_ in range(slots):
        await registry.publish(certificate(20, round_), lanes=LANES_MAX)
    entries = len(store.items)
    for round_ in range(slots, 2 * slots):
        await registry.publish(certificate(2, round_), lanes=LANES_MAX)
    assert len(store.items) == entries
    assert [c.round for c in registry.certificates("run")] == list(range(slots, 2 * slots))


async def test_lanes_do_not_see_each_others_certificates(autojump_clock: MockClock) -> None:
    registry = Registry(SharedStore(A, {}), A)
    one, two = certificate(2, 3, lane=1), certificate(2, 5, lane=2)
    for each in (one, two):
        await registry.publish(each, lanes=3)
    assert registry.certificates("run", 1) == [one]
    assert registry.last_certificate("run", 2) == two
    assert registry.last_certificate("run", 0) is None


async def test_of_two_certificates_of_a_sampled_round_the_larger_counts(
    autojump_clock: MockClock,
) -> None:
    store = SharedStore(A, {})
    small, large = certificate(2, 3), certificate(3, 3)
    await Registry(store, A).publish(small, lanes=1)
    assert Registry(store, A).certificates("run") == [small]
    await Registry(SharedStore(B, store.items), B).publish(large, lanes=1)
    assert Registry(store, A).certificates("run") == [large]


async def test_what_others_write_in_place_of_certificates_is_ignored(
    autojump_clock: MockClock,
) -> None:
    store = SharedStore(A, {})
    hostile = SharedStore(B, store.items)
    registry = Registry(store, A)
    await registry.publish(certificate(2, 3), lanes=1)
    forged = msgspec.structs.replace(certificate(2, 4), result=OTHER[::-1] + b"")
    forged = msgspec.structs.replace(forged, result=b"f" * 32)
    lies = ((4, forged), (9, certificate(2, 3)), (5, certificate(2, 5, run="other")))
    for round_, value in (*lies, (6, certificate(2, 6, lane=1))):
        key = f"run/round/000/{round_:03d}/@{B}/00"
        await hostile.put("runs", key, [round_, 1, msgspec.msgpack.encode(value)])
    for number, nonsense in enumerate((b"", {"no": "part"}, [1, 0, b""], [1, 99, b"x"], [1])):
        await hostile.put("runs", f"run/round/000/{20 + number:03d}/@{B}/00", nonsense)
    await hostile.put("runs", "run/round/000/no slot", b"")
    await hostile.put("runs", f"run/round/000/007/@{A}/00", [7, 1, b"in another's name"])
    assert registry.certificates("run") == [certificate(2, 3)]
    assert registry.last_certificate("run") == certificate(2, 3)


@given(st.binary(max_size=200))
def test_any_bytes_in_the_store_are_no_certificate(data: bytes) -> None:
    async def check() -> None:
        store = SharedStore(A, {})
        await store.put("runs", f"run/round/000/000/@{A}/00", [0, 1, data])
        assert Registry(store, A).certificates("run") == []

    trio.run(check)


async def test_a_lease_of_the_most_lanes_fits_a_value_of_the_store(
    autojump_clock: MockClock,
) -> None:
    store = SharedStore(A, {})
    lease = MemberLease(
        at=[ROUNDS_MAX] * LANES_MAX,
        elements=wire.ELEMENTS_MAX,
        codec="c" * 16,
        rounds=ROUNDS_MAX,
        settings="s" * 256,
    )
    await Registry(store, A).put_lease("run", lease, 9.0)
    assert Registry(store, B).leases("run") == {A: lease}
    assert all(len(msgspec.msgpack.encode(i.value)) <= 2048 for i, _ in store.items.values())


async def test_who_made_the_last_round_is_told_by_the_chain_not_by_who_says_a_later_one(
    autojump_clock: MockClock,
) -> None:
    items: Any = {}
    ours, hostile = (
        Registry(SharedStore(signer.peer, items), signer.peer) for signer in SIGNERS[:2]
    )
    for round_ in (0, 1):
        await ours.publish(certificate(3, round_, start=2), lanes=1)
    await hostile.publish(certificate(1, 999, start=1), lanes=1)
    known = Electorate(2, certificate=certificate(3, 0, start=2))
    assert ours.makers("run", 0, known) == certificate(3, 1, start=2).members
    sampled = Electorate(2, sample=3)
    assert ours.last_certificate("run", 0, sampled) == certificate(3, 1, start=2)
    gone = Electorate(2, certificate=certificate(3, 500, start=2))
    assert ours.makers("run", 0, gone) == [B]


async def test_an_author_has_as_many_certificates_of_a_lane_as_there_are_slots(
    autojump_clock: MockClock,
) -> None:
    store = SharedStore(A, {})
    data = msgspec.msgpack.encode(certificate(1, 3))
    for slot in ("064", "999", "x", "0000", "1"):
        await store.put("runs", f"run/round/000/{slot}/@{A}/00", [3, 1, data])
    assert Registry(store, A).certificates("run") == []
