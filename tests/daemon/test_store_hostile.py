"""A member that attacks a daemon's store: all of it is refused, counted, and hinders nobody."""

from pathlib import Path

import trio

from benchmarks.agree_hostile import refused
from benchmarks.agree_member import Member, running
from benchmarks.agree_villain import ATTACKS, REASONS
from benchmarks.forge import Forged
from node.tickets import parse_ticket
from tests.daemon.processes import Daemon, daemons

TRIES = 5
DEAF = {"busy", "unreachable", "deadline"}  # answers of who has not read what was sent
GROWTH_MB = 20.0


def seen(daemon: Daemon) -> Forged:
    return Forged(daemon.home, daemon.pid)


async def member_of(daemon: Daemon) -> tuple[str, str]:
    client = daemon.client
    address = (await trio.to_thread.run_sync(client.id)).addresses[0]
    return address, await trio.to_thread.run_sync(client.ticket)


async def attack(member: Member, daemon: Daemon, name: str) -> set[str]:
    """Attack; returns what the daemon has counted. Once, or again if it did not listen: an attacker
    is told that we are busy, or thrown out.
    """
    before = await trio.to_thread.run_sync(refused, seen(daemon))
    for _ in range(TRIES):
        answers = (await member.attack(name, 0))["answers"]
        if not DEAF & answers.keys():
            break
        await trio.sleep(1)
    after = await trio.to_thread.run_sync(refused, seen(daemon))
    return {reason for reason, count in after.items() if count > before.get(reason, 0)}


async def test_every_attack_is_counted_by_its_reason_and_honest_syncs_go_on(
    tmp_path: Path,
) -> None:
    with daemons(tmp_path, "target") as (target,):
        await trio.to_thread.run_sync(target.start)
        address, ticket = await member_of(target)
        async with (
            running(address, parse_ticket(ticket)) as villain,
            running(address, parse_ticket(ticket)) as honest,
        ):
            await honest.sync(10)
            missed = dict[str, set[str]]()
            for name in ATTACKS:
                counted = await attack(villain, target, name)
                if not REASONS[name] <= counted:
                    missed[name] = counted
                assert (await honest.sync(10))["out"] == 10, name
            assert missed == {}
            before_mb = seen(target).rss_mb
            for name in ATTACKS:
                await villain.attack(name, 0)
            assert seen(target).rss_mb - before_mb < GROWTH_MB
