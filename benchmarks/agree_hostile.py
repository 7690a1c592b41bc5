"""Hostile members of a daemon's swarm against its store, while an honest one goes on syncing.

`python -m benchmarks.agree_hostile` prints one JSON object a line. The attacker's process has the
lowest priority: a real one has a machine of its own.
"""

import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack

from benchmarks.agree_sync import figures
from benchmarks.agree_villain import ATTACKS, REASONS
from benchmarks.agree_villain_sync import LIES
from benchmarks.forge import Forged, daemons
from benchmarks.fuzz_store import TARGETS
from benchmarks.orders import Child, Failed
from benchmarks.report import QUICK, ROUNDS, progress, report
from shoal.errors import ClientError

FRAMES = 3_000 if QUICK else 1_000_000  # of each type of message
FUZZ_S = 600.0
ATTACK_ROUNDS = 1 if QUICK else ROUNDS
ATTACK_S = 0.3 if QUICK else 2.0  # of each attack, in each round
SYNC_ENTRIES = 500  # that the honest member brings, each time
ALONE = 3  # syncs without an attack, in each round
GROWTH_MB = 20.0
KEPT = ("misordered", "forked", "authors", "namespaces")  # what comes before the fault is valid, as
# are floods: the store holds it, up to its limits (crdt/spaces.py)
SYNC_RATIO = 5.0
LIE_GOAL_S = 120.0  # what a session may take at all (crdt/exchange.py)


def _fuzz() -> None:
    """Give mutated frames to every decoder of the store, in two processes."""
    names, grown = [make.__name__ for make in TARGETS], list[float]()
    argv = [sys.executable, "-m", "benchmarks.fuzz"]
    progress(f"{FRAMES} fuzzed frames on each of {', '.join(names)}")
    with Child("fuzz", argv) as even, Child("fuzz", argv) as odd:
        for pair in (names[i : i + 2] for i in range(0, len(names), 2)):
            at_work = list(zip((even, odd), pair, strict=False))
            for child, name in at_work:
                child.tell("fuzz", protocol=name, frames=FRAMES, seed=FRAMES)
            for child, name in at_work:
                answer = child.wait(FUZZ_S)
                for example in answer["examples"]:
                    progress(f"CRASH {name}: {example}")
                grown.append(answer["grown_mb"])
                unit = f"crashes in {FRAMES} frames"
                report(f"agree.fuzz_{name}", [answer["crashes"]], unit, goal=0)
    report("agree.fuzz_growth", [max(grown)], "MB", goal=GROWTH_MB)


def refused(daemon: Forged) -> dict[str, float]:
    """Read what a daemon's store has refused, by reason, and the proofs against authors it has."""
    counted = figures(daemon)
    found = {"proven": counted["shoal_store_faults"]}
    for name, value in counted.items():
        if name.startswith("shoal_store_refused_total{"):
            found[name.partition('reason="')[2].partition('"')[0]] = value
    return found


def _attack(daemon: Forged, honest: Child, attacker: Child) -> None:
    """All attacks in turn, with the honest syncs' times alone and beside each."""
    alone, beside = list[float](), {name: list[float]() for name in ATTACKS}
    honest.ask("sync", count=SYNC_ENTRIES)
    counted = dict[str, bool]()
    for name in ATTACKS:  # what a first attack makes the daemon import and keep is no growth
        before = refused(daemon)
        answer = attacker.ask("attack", name=name, seconds=0)
        after = refused(daemon)
        new = {reason for reason, count in after.items() if count > before.get(reason, 0)}
        counted[name] = REASONS[name] <= new
        progress(f"  {name}: {answer['answers']}, counted as {', '.join(sorted(new)) or 'nothing'}")
    honest.ask("sync", count=SYNC_ENTRIES)  # it gets what the attacks have left there, once
    before_mb, pid = daemon.rss_mb, daemon.pid
    refusable = [name for name in ATTACKS if name not in KEPT]
    for number in range(ATTACK_ROUNDS):  # alone: news of honest writes are cached for a minute
        progress(f"attacks alone, round {number + 1}; the daemon has {daemon.rss_mb:.0f} MB")
        for name in refusable:
            attacker.ask("attack", name=name, seconds=ATTACK_S)
    report("agree.hostile_growth", [daemon.rss_mb - before_mb], "MB", goal=GROWTH_MB)
    for number in range(ATTACK_ROUNDS):
        progress(f"attacks, round {number + 1}; the daemon has {daemon.rss_mb:.0f} MB")
        alone += [honest.ask("sync", count=SYNC_ENTRIES)["seconds"] for _ in range(ALONE)]
        _round(refusable, honest, attacker, beside)
    _lies(daemon, honest, attacker, beside)
    before_mb, before = daemon.rss_mb, figures(daemon)["shoal_store_entries"]
    for number in range(ATTACK_ROUNDS):
        progress(f"floods, round {number + 1}; the daemon has {daemon.rss_mb:.0f} MB")
        _round(KEPT, honest, attacker, beside)
    kept = figures(daemon)["shoal_store_entries"] - before
    why = f"{kept:.0f} valid entries more"
    report("agree.hostile_kept", [daemon.rss_mb - before_mb], "MB", why=why)
    for name, seconds in beside.items():
        report(
            *(f"agree.hostile_sync_{name}", seconds, "s"),
            against="no attack",
            against_values=alone,
            goal_ratio=SYNC_RATIO,
        )
    missed = [name for name, is_counted in counted.items() if not is_counted]
    why = f"not counted: {', '.join(missed)}" if missed else ""
    report("agree.hostile_uncounted", [len(missed)], "kinds of attack", goal=0, why=why)
    survives = daemon.client.status().pid == pid
    report("agree.hostile_crashes", [0 if survives else 1], "crashes", goal=0)


def _round(
    names: Sequence[str], honest: Child, attacker: Child, beside: dict[str, list[float]]
) -> None:
    for name in names:
        attacker.tell("attack", name=name, seconds=ATTACK_S)
        beside[name].append(honest.ask("sync", count=SYNC_ENTRIES)["seconds"])
        attacker.wait()


def _lies(daemon: Forged, honest: Child, attacker: Child, beside: dict[str, list[float]]) -> None:
    """Have the daemon lead syncs with one who answers with lies, beside honest syncs."""
    longest = 0.0
    for about in LIES:
        peer = attacker.ask("lie", about=about)["peer"]
        honest.tell("sync", count=SYNC_ENTRIES)
        began = time.perf_counter()
        try:
            said = f"{daemon.client.store.sync(peer)[0].round_trips} round trips"
        except ClientError as error:
            said = str(error)
        longest = max(longest, time.perf_counter() - began)
        progress(f"  lies about {about}: {said}, {time.perf_counter() - began:.1f} s")
        beside[f"liar_{about}"] = [honest.wait()["seconds"]]
    report("agree.hostile_liar_longest", [longest], "s", goal=LIE_GOAL_S)


def main() -> None:
    """Fuzz, then attack."""
    _fuzz()
    with daemons(1) as (daemon,), ExitStack() as stack:
        address, ticket = daemon.client.id().addresses[0], daemon.client.ticket()
        argv = [sys.executable, "-m", "benchmarks.agree_member", address, ticket]
        honest = stack.enter_context(Child("honest", argv))
        attacker = stack.enter_context(Child("attacker", ["nice", "-n", "19", *argv]))
        try:
            _attack(daemon, honest, attacker)
        except Failed as error:
            report("agree.hostile_crashes", [], "crashes", goal=0, why=str(error))


if __name__ == "__main__":
    main()
