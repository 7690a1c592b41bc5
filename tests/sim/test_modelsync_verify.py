"""Verification in simulated swarms: who lies about a contribution, or about another, is banned."""

import hashlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, cast

import msgspec
import numpy as np
import pytest
import trio
from trio.testing import MockClock

from protocols.modelsync.registry import NAMESPACE
from protocols.modelsync.sealed import commitment_to, encode_chunks
from protocols.modelsync.shards import equal_shards
from protocols.modelsync.trust import LOOK_S, Trust
from protocols.modelsync.vectors import Vector
from protocols.modelsync.verify import Duty, assignments, certificate_hash
from protocols.modelsync.verify_wire import Case, Finding, Verdict, case_key
from protocols.modelsync.wire import CERTIFICATE_TAG, Certificate, seal_of
from protocols.rpc.service import RpcService
from tests.sim.net import Net
from tests.sim.training import SharedStore, in_place
from wire.errors import NotFound
from wire.ids import PeerId, Signer
from wire.ports import Item, Rpc

RUN = "test"
ELEMENTS = 9000
ROUND_S = 5.0


def honest(peer: PeerId, round_: int) -> Vector:
    """What a member's data and the state before the round make."""
    seed = hashlib.sha256(f"{peer}/{round_}".encode()).digest()
    generator = np.random.default_rng(list(seed))
    return generator.standard_normal(ELEMENTS, dtype=np.float32)


@dataclass
class Gate:
    """An Rpc that does not answer some peers."""

    inner: RpcService
    withholds_from: set[PeerId]

    @property
    def peer(self) -> PeerId:
        return self.inner.peer

    def stream(self, peer: PeerId, method: Any, *, timeout_s: float) -> Any:
        return self.inner.stream(peer, method, timeout_s=timeout_s)

    def serve_stream(self, method: Any, handler: Callable[[Any], Awaitable[None]]) -> None:
        async def sometimes(call: Any) -> None:
            if call.peer in self.withholds_from:
                await trio.sleep_forever()
            await handler(call)

        self.inner.serve_stream(method, sometimes)


@dataclass
class Member:
    """One node: real verification; its rounds are made by the test."""

    signer: Signer
    trust: Trust
    store: SharedStore
    bring: Callable[[PeerId, int], Vector] = honest
    recompute: Callable[[PeerId, int], Vector] = honest
    withholds_from: set[PeerId] = field(default_factory=set[PeerId])
    votes: Verdict | None = None  # whatever is true

    @property
    def peer(self) -> PeerId:
        return self.signer.peer

    async def work_off(self) -> None:
        """What a trainer does after each round: its duties."""
        for duty in self.trust.duties(RUN, 0):
            if self.votes is None:
                vector = self.recompute(duty.case.target, duty.case.round)
                await self.trust.verdict(RUN, duty.case, vector)

    async def accuse(self, certificate: Certificate, target: PeerId, verdict: Verdict) -> None:
        case = Case(0, certificate.round, target)
        charge = "withheld" if verdict == "withheld" else "differs"
        finding = Finding(certificate_hash(certificate), verdict, charge)
        key = case_key(RUN, case, self.peer)
        await self.store.put(NAMESPACE, key, msgspec.to_builtins(finding), ttl_s=1e5)


class Swarm:
    """Members of one verified run."""

    def __init__(self, nursery: trio.Nursery, codec: str = "float32") -> None:
        self.net, self.nursery, self.codec = Net(nursery), nursery, codec
        self.items: dict[tuple[str, str], tuple[Item, float]] = {}
        self.members: list[Member] = []
        self.round = 0

    async def add(self) -> Member:
        signer = Signer(bytes([len(self.members) + 1]) * 32)
        rpc, store = self.net.rpc(signer.peer), SharedStore(signer.peer, self.items)
        withholds_from: set[PeerId] = set()
        trust = Trust(cast(Rpc, Gate(rpc, withholds_from)), store, in_place)
        member = Member(signer, trust, store, withholds_from=withholds_from)
        self.members.append(member)
        await self.nursery.start(trust.run, RUN)
        return member

    async def one_round(
        self,
        suspect: PeerId | None = None,
        *,
        then: Callable[[Certificate], None] = lambda certificate: None,
    ) -> Certificate:
        """Commit a sealed round of all who are not banned; then everybody does its duties."""
        members = [m for m in self.members if not self.is_banned(m.peer)]
        shards = equal_shards(ELEMENTS, len(members))
        brought = [encode_chunks(m.bring(m.peer, self.round), shards, self.codec) for m in members]
        reveals = tuple(hashlib.sha256(f"{m.peer}/{self.round}".encode()).digest() for m in members)
        certificate = Certificate(
            run=RUN,
            round=self.round,
            attempt=0,
            proposer=members[0].peer,
            members=[m.peer for m in members],
            contributors=[m.peer for m in members],
            weights=[1.0] * len(members),
            codec=self.codec,
            base_root=bytes(32),
            result=bytes(32),
            commitments=tuple(commitment_to(data, shards) for data in brought),
            seals=tuple(map(seal_of, reveals)),
        )
        body = certificate.body()
        certificate = msgspec.structs.replace(
            certificate,
            signatures=tuple(m.signer.sign(CERTIFICATE_TAG, body) for m in members),
            reveals=reveals,
        )
        for member, data in zip(members, brought, strict=True):
            member.trust.brought(RUN, 0, commitment_to(data, shards), data)
            member.trust.committed(certificate, shards, suspect=suspect)
        self.round += 1
        then(certificate)
        await trio.sleep(ROUND_S)
        for member in members:
            await member.work_off()
        return certificate

    def is_banned(self, peer: PeerId) -> bool:
        return any(m.trust.is_banned(RUN, peer) for m in self.members if m.peer != peer)

    def banned(self) -> list[set[PeerId]]:
        """Whom each honest member takes for banned."""
        return [set(m.trust.bans(RUN)) for m in self.members]


async def four(nursery: trio.Nursery, codec: str = "float32") -> Swarm:
    made = Swarm(nursery, codec)
    for _ in range(4):
        await made.add()
    return made


async def end(swarm: Swarm) -> None:
    assert swarm.net.errors == []
    swarm.nursery.cancel_scope.cancel()


async def rounds(swarm: Swarm, count: int) -> None:
    for _ in range(count):
        await swarm.one_round()
    await trio.sleep(60)


def lies(peer: PeerId, round_: int) -> Vector:
    return np.multiply(honest(peer, round_), np.float32(-1000))


@pytest.mark.parametrize("codec", ["float32", "int8", "fedzip"])
async def test_who_sends_another_gradient_than_its_own_is_banned_by_all_within_ten_rounds(
    autojump_clock: MockClock, nursery: trio.Nursery, codec: str
) -> None:
    swarm = await four(nursery, codec)
    attacker, *others = swarm.members
    attacker.bring = lies
    await rounds(swarm, 10)
    for member in others:
        assert set(member.trust.bans(RUN)) == {attacker.peer}
        assert member.trust.bans(RUN)[attacker.peer].reason == "differs"
    await end(swarm)


async def test_a_validator_checks_whose_contribution_its_own_shard_shows_to_be_absurd(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    swarm = await four(nursery)
    attacker = swarm.members[0]
    attacker.bring = lies
    certificate = await swarm.one_round(suspect=attacker.peer)
    assert attacker.peer not in assignments(certificate)  # or it would be luck
    await rounds(swarm, 2)
    assert swarm.banned()[1:] == [{attacker.peer}] * 3
    await end(swarm)


async def test_nobody_is_banned_where_all_are_honest(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    swarm = await four(nursery)
    await rounds(swarm, 12)
    assert swarm.banned() == [set()] * 4
    assert not [key for _, key in swarm.items if "/trust/" in key]
    await end(swarm)


async def test_other_hardware_is_not_a_lie(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    swarm = await four(nursery)

    def nearly(peer: PeerId, round_: int) -> Vector:
        return np.multiply(honest(peer, round_), np.float32(1.003))

    swarm.members[0].recompute = swarm.members[1].recompute = nearly
    await rounds(swarm, 8)
    assert swarm.banned() == [set()] * 4
    await end(swarm)


async def test_a_validator_that_accuses_falsely_is_banned(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    swarm = await four(nursery)
    certificate = await swarm.one_round()
    ((validator, target),) = assignments(certificate).items()
    liar = next(m for m in swarm.members if m.peer == validator)
    await liar.accuse(certificate, target, "differs")
    await rounds(swarm, 3)
    for member in swarm.members:
        assert set(member.trust.bans(RUN)) == {validator}
        assert member.trust.bans(RUN)[validator].reason == "accused"
    await end(swarm)


async def test_who_is_no_validator_of_the_round_cannot_accuse(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    swarm = await four(nursery)
    certificate = await swarm.one_round()
    (validator,) = assignments(certificate)
    accuser = next(m for m in swarm.members if m.peer != validator)
    target = next(m for m in swarm.members if m is not accuser)
    await accuser.accuse(certificate, target.peer, "differs")
    await trio.sleep(3 * LOOK_S)
    assert all(m.trust.duties(RUN, 0) == [] for m in swarm.members)
    await end(swarm)


async def test_colluding_members_up_to_half_ban_nobody(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    swarm = await four(nursery)
    certificate = await swarm.one_round()
    ((validator, target),) = assignments(certificate).items()
    gang = [m for m in swarm.members if m.peer != target]
    gang = [m for m in gang if m.peer == validator] + [m for m in gang if m.peer != validator][:1]
    for member in gang:
        member.votes = "differs"
        await member.accuse(certificate, target, "differs")
    await rounds(swarm, 3)
    # Two against two: nobody is banned, the accuser neither.
    assert swarm.banned() == [set()] * 4
    await end(swarm)


async def test_who_gives_its_contribution_to_nobody_is_banned(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    swarm = await four(nursery)
    attacker, *others = swarm.members
    attacker.bring = lies
    attacker.withholds_from |= {m.peer for m in others}
    await rounds(swarm, 10)
    for member in others:
        assert set(member.trust.bans(RUN)) == {attacker.peer}
        assert member.trust.bans(RUN)[attacker.peer].reason == "withheld"
    await end(swarm)


async def test_who_withholds_from_its_validator_only_is_found_out_by_what_the_others_got(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    swarm = await four(nursery)
    attacker, *others = swarm.members
    attacker.bring = lies

    def hide(certificate: Certificate) -> None:
        attacker.withholds_from.update(assignments(certificate))

    await swarm.one_round(attacker.peer, then=hide)
    await rounds(swarm, 3)
    for member in others:
        assert set(member.trust.bans(RUN)) == {attacker.peer}
        assert member.trust.bans(RUN)[attacker.peer].reason == "differs"
    await end(swarm)


async def test_a_charge_of_withholding_that_others_refute_bans_nobody(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    swarm = await four(nursery)
    certificate = await swarm.one_round()
    ((validator, target),) = assignments(certificate).items()
    liar = next(m for m in swarm.members if m.peer == validator)
    await liar.accuse(certificate, target, "withheld")
    await rounds(swarm, 3)
    assert swarm.banned() == [set()] * 4
    await end(swarm)


async def test_who_comes_later_learns_of_bans_from_those_who_were_there(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    swarm = await four(nursery)
    attacker = swarm.members[0]
    attacker.bring = lies
    await rounds(swarm, 10)
    newcomer = await swarm.add()
    assert not newcomer.trust.is_banned(RUN, attacker.peer)
    await swarm.one_round()
    await trio.sleep(3 * LOOK_S)
    assert newcomer.trust.is_banned(RUN, attacker.peer)
    await end(swarm)


async def test_nonsense_in_the_store_is_skipped(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    swarm = await four(nursery)
    certificate = await swarm.one_round()
    for member in swarm.members:
        for key in (
            case_key(RUN, Case(0, 0, swarm.members[0].peer), member.peer),
            f"{RUN}/trust/case/x/y/z/@{member.peer}",
            f"{RUN}/trust/ban/{swarm.members[0].peer}/@{member.peer}",
            f"{RUN}/trust/ban/{swarm.members[0].peer}",
            f"{RUN}/trust/ban/",
        ):
            await member.store.put(NAMESPACE, key, {"what": [1, 2]})
    await trio.sleep(3 * LOOK_S)
    assert swarm.banned() == [set()] * 4
    assert certificate.is_signed()
    await end(swarm)


async def test_only_duties_can_be_answered(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    swarm = await four(nursery)
    certificate = await swarm.one_round()
    case = Case(0, certificate.round, swarm.members[0].peer)
    for member in swarm.members:
        with pytest.raises(NotFound):
            await member.trust.verdict(RUN, case, honest(case.target, 0))
    assert Duty(case).charge is None
    await end(swarm)
