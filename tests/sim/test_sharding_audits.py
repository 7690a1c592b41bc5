"""Audits end with the right one blamed, whoever lies about what; and never with an honest one."""

import msgspec
import pytest
import trio
from trio.testing import MockClock

from benchmarks.cheats import CHEATS
from node.model_audits import FLUSH_S
from protocols.sharding.audit import FALSE_AUDIT, FALSE_INPUT
from protocols.sharding.reputation import BAN_S
from protocols.sharding.worker_wire import Output, ProofsReply, WorkerAnswer
from tests.sim.audited import NAME, ROUTE, AuditedSwarm


def other_picks(answer: WorkerAnswer) -> WorkerAnswer:
    """Pick another token, and stand by it."""
    if isinstance(answer, Output) and answer.position > 20:
        picks = [msgspec.structs.replace(one, token=(one.token + 1) % 97) for one in answer.picks]
        return msgspec.structs.replace(answer, picks=picks)
    if isinstance(answer, ProofsReply):
        said = [(at, (token + 1) % 97 if at > 20 else token) for at, token in answer.picks]
        return msgspec.structs.replace(answer, picks=said)
    return answer


def other_picks_claimed(answer: WorkerAnswer) -> WorkerAnswer:
    if isinstance(answer, ProofsReply) and answer.picks:
        picks = [(at, (token + 1) % 97) for at, token in answer.picks]
        return msgspec.structs.replace(answer, picks=picks)
    return answer


def false_inputs(answer: WorkerAnswer) -> WorkerAnswer:
    if isinstance(answer, ProofsReply):
        inputs = [bytes([proof[0] ^ 1]) + proof[1:] for proof in answer.inputs]
        return msgspec.structs.replace(answer, inputs=inputs)
    return answer


def false_outputs(answer: WorkerAnswer) -> WorkerAnswer:
    """As an auditor that contradicts honest work."""
    if isinstance(answer, ProofsReply):
        outputs = [proof[:16] + bytes(b ^ 0x10 for b in proof[16:]) for proof in answer.outputs]
        return msgspec.structs.replace(answer, outputs=outputs)
    return answer


def other_rows(answer: WorkerAnswer) -> WorkerAnswer:
    """Give other rows than were computed, and committed to."""
    if isinstance(answer, Output) and answer.rows and answer.position > 20:
        return msgspec.structs.replace(answer, rows=bytes(64) + answer.rows[64:])
    return answer


@pytest.mark.parametrize("codec", ["auto", "bfloat16", "int8"])
async def test_honest_stages_pass(
    nursery: trio.Nursery, autojump_clock: MockClock, codec: str
) -> None:
    swarm = await AuditedSwarm.start(nursery, codec=codec)
    for _ in range(3):
        found = await swarm.audit()
        assert [(one.state, len(one.auditors)) for one in found] == [("passed", 1)] * 3
    view = swarm.audits["entry"].view(NAME)
    passed = {one.peer: (one.passed, one.failed) for one in view.audited}
    assert passed == {swarm.peers[name]: (3, 0) for name in ROUTE}
    assert view.unaudited == 0


@pytest.mark.parametrize("cheat", sorted(CHEATS))
async def test_a_stage_that_cheats_is_blamed_and_banned(
    nursery: trio.Nursery, autojump_clock: MockClock, cheat: str
) -> None:
    swarm = await AuditedSwarm.start(nursery, cheats={"b": CHEATS[cheat]})
    found = await swarm.audit()
    assert swarm.blamed(found) == {"b"}
    states = [one.state for one in found]
    assert states == ["passed", "failed", "passed"]
    assert len(found[1].auditors) == 2  # one other alone bans nobody
    assert swarm.audits["entry"].penalty(swarm.peers["b"]) == float("inf")
    swarm.dear.discard("x")
    assert swarm.blamed(await swarm.audit()) == set()  # the route goes round it


@pytest.mark.parametrize("cheat", ["bf16", "int4", "token"])
@pytest.mark.parametrize("name", ["a", "c"])
async def test_the_first_and_the_last_stage_are_caught_as_well(
    nursery: trio.Nursery, autojump_clock: MockClock, cheat: str, name: str
) -> None:
    swarm = await AuditedSwarm.start(nursery, cheats={name: CHEATS[cheat]})
    assert swarm.blamed(await swarm.audit()) == {name}


async def test_a_pick_that_the_logits_do_not_allow_is_seen(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    swarm = await AuditedSwarm.start(nursery, lies={"c": other_picks})
    found = await swarm.audit()
    assert swarm.blamed(found) == {"c"}
    assert "pick" in found[-1].note


async def test_picks_claimed_that_were_not_given_are_seen_without_an_audit(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    swarm = await AuditedSwarm.start(nursery, lies={"c": other_picks_claimed})
    await swarm.ask()
    await trio.sleep(1)
    (row,) = swarm.audits["entry"].view(NAME).audited
    assert (row.peer, row.failed, row.why) == (
        swarm.peers["c"],
        1,
        "it claims other picks than it gave",
    )


async def test_a_false_input_is_the_fault_of_who_claims_it(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    swarm = await AuditedSwarm.start(nursery, lies={"b": false_inputs})
    found = await swarm.audit()
    assert swarm.blamed(found) == {"b"}
    assert found[0].note == FALSE_INPUT


async def test_who_gives_other_rows_than_it_commits_to_is_blamed(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    swarm = await AuditedSwarm.start(nursery, lies={"b": other_rows})
    assert swarm.blamed(await swarm.audit()) == {"b"}


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("cheats", [False, True])
async def test_an_auditor_that_contradicts_honest_work_is_blamed_itself(
    nursery: trio.Nursery, autojump_clock: MockClock, cheats: bool, seed: int
) -> None:
    swarm = await AuditedSwarm.start(
        nursery,
        cheats={"b": CHEATS["skip"]} if cheats else {},
        lies={"x": false_outputs},
        replicas=("x", "y", "z"),
        seed=seed,
    )
    found = set[str]()
    for _ in range(4):  # when b is banned, x computes its blocks at times, and lies of them, too
        found |= swarm.blamed(await swarm.audit())
    assert found == ({"x", "b"} if cheats else {"x"})
    rows = {row.peer: row for row in swarm.audits["entry"].view(NAME).audited}
    if not cheats:  # else its last lie may have been one as a stage: routes are chance
        assert rows[swarm.peers["x"]].why == FALSE_AUDIT


async def test_one_auditor_against_one_stage_blames_nobody(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    swarm = await AuditedSwarm.start(nursery, cheats={"b": CHEATS["skip"]}, replicas=("x",))
    found = await swarm.audit()
    assert [one.state for one in found] == ["passed", "disputed", "passed"]
    assert swarm.blamed(found) == set()


async def test_a_share_of_sessions_is_audited_and_written_down_for_all(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    swarm = await AuditedSwarm.start(nursery, cheats={"b": CHEATS["int4"]}, share=1.0)
    for _ in range(6):  # (a random stage of each)
        await swarm.ask()
        await trio.sleep(20)
    await trio.sleep(FLUSH_S + 1)
    row = {one.peer: one for one in swarm.audits["x"].view(NAME).audited}[swarm.peers["b"]]
    assert row.failed_by == [swarm.peers["entry"]]
    assert row.penalty == pytest.approx(1.0, rel=0.01)  # one voice alone bans nobody elsewhere
    mine = {one.peer: one for one in swarm.audits["entry"].view(NAME).audited}[swarm.peers["b"]]
    assert mine.banned_until_ms - mine.failed_ms == BAN_S * 1000


async def test_nobody_else_with_the_blocks_is_counted(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    swarm = await AuditedSwarm.start(nursery, replicas=())
    found = await swarm.audit()
    assert [one.state for one in found] == ["unaudited"] * 3
    assert swarm.audits["entry"].view(NAME).unaudited == 3
