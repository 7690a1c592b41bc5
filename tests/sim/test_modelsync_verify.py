"""Verification in simulated swarms: who lies about a contribution, or about another, is banned."""

import numpy as np
import pytest
import trio
from trio.testing import MockClock

from protocols.modelsync.registry import NAMESPACE
from protocols.modelsync.trust import LOOK_S
from protocols.modelsync.vectors import Vector
from protocols.modelsync.verify import Duty, assignments
from protocols.modelsync.verify_wire import CONTRIBUTION, Case, Wanted, case_key
from protocols.modelsync.wire import Certificate
from tests.sim.verification import ELEMENTS, RUN, Swarm, end, four, honest
from wire.errors import NotFound, RemoteError
from wire.ids import PeerId, Signer


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


@pytest.mark.parametrize("is_garbled", [False, True])
async def test_who_gives_its_contribution_to_nobody_or_another_is_banned(
    autojump_clock: MockClock, nursery: trio.Nursery, is_garbled: bool
) -> None:
    swarm = await four(nursery)
    attacker, *others = swarm.members
    attacker.gate.is_garbled = is_garbled
    attacker.bring = lies
    attacker.gate.withholds_from |= {m.peer for m in others}
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
        attacker.gate.withholds_from.update(assignments(certificate))

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


async def test_a_holder_that_all_ask_at_once_is_not_said_to_withhold(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    swarm = Swarm(nursery)
    for _ in range(20):
        await swarm.add()
    certificate = await swarm.one_round()
    validator, target = next(iter(assignments(certificate).items()))
    liar = next(m for m in swarm.members if m.peer == validator)
    await liar.accuse(certificate, target, "withheld")
    await rounds(swarm, 3)
    assert swarm.banned() == [set()] * 20
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


async def test_contributions_are_given_to_members_only(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    swarm = await four(nursery)
    certificate = await swarm.one_round()
    stranger = swarm.net.rpc(Signer(bytes([99]) * 32).peer)
    holder = swarm.members[0]

    async def ask() -> None:
        async with stranger.stream(holder.peer, CONTRIBUTION, timeout_s=4) as call:
            await call.send(Wanted(RUN, 0, certificate.commitments[0]))
            await call.receive()

    with pytest.raises(RemoteError, match="no such contribution"):
        await ask()
    await end(swarm)


async def test_what_comes_out_as_no_number_is_not_what_was_committed_to(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    def diverged(peer: PeerId, round_: int) -> Vector:
        return np.full(ELEMENTS, np.nan, dtype=np.float32)

    swarm = await four(nursery)
    for member in swarm.members:
        member.recompute = diverged
    certificate = await swarm.one_round()
    await rounds(swarm, 3)
    assert all(assignments(certificate)[v] in banned for v in assignments(certificate)
               for banned in swarm.banned())  # fmt: skip
    await end(swarm)


@pytest.mark.parametrize(("factor", "is_same"), [(1.0, True), (1.0001, False)])
async def test_a_trainer_hears_if_what_it_made_has_the_same_bits(
    autojump_clock: MockClock, nursery: trio.Nursery, factor: float, is_same: bool
) -> None:
    swarm = await four(nursery)
    for member in swarm.members:
        member.votes = "fine"  # it does nothing by itself
    ((validator, target),) = assignments(await swarm.one_round()).items()
    trust = next(member.trust for member in swarm.members if member.peer == validator)
    made = np.multiply(honest(target, 0), np.float32(factor))
    assert await trust.verdict(RUN, Case(0, 0, target), made) is is_same
    await end(swarm)
