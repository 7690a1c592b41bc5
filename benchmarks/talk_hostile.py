"""Hostile peers: fuzzed frames against every decoder, and attacks on a live daemon while an honest
member goes on calling it.

`python -m benchmarks.talk_hostile` prints one JSON object a line. The attacker's process has the
lowest priority: a real one has a machine of its own.
"""

import random
import sys
from contextlib import ExitStack

from benchmarks.forge import Forged, daemons
from benchmarks.orders import Child, Failed
from benchmarks.report import QUICK, ROUNDS, percentile, progress, report

FRAMES = 3_000 if QUICK else 1_000_000  # for each protocol
PROTOCOLS = ("rpc", "gossip", "blobs", "bulk", "yamux", "noise", "admission")
ATTACK_ROUNDS = 2 if QUICK else ROUNDS
ATTACK_S = 0.3 if QUICK else 3.0  # of each attack, in each round
STREAMS = 10_000  # half open, in all
FUZZ_S = 300.0
GROWTH_MB = 20.0
P99_RATIO = 3.0
ATTACKS = ("slow_loris", "half_open", "bombs", "garbage")


def _fuzz() -> None:
    """Give mutated frames to each protocol's decoder; two processes, for there are two cores."""
    seed = random.randrange(1 << 32)
    progress(f"{FRAMES} fuzzed frames on each of {len(PROTOCOLS)} protocols, seed {seed}")
    unit = f"crashes in {FRAMES} frames"
    grown = list[float]()
    argv = [sys.executable, "-m", "benchmarks.fuzz"]
    with Child("fuzz", argv) as even, Child("fuzz", argv) as odd:
        for pair in (PROTOCOLS[i : i + 2] for i in range(0, len(PROTOCOLS), 2)):
            at_work = list(zip((even, odd), pair, strict=False))
            for child, protocol in at_work:
                child.tell("fuzz", protocol=protocol, frames=FRAMES, seed=seed)
            for child, protocol in at_work:
                answer = child.wait(FUZZ_S)
                for example in answer["examples"]:
                    progress(f"CRASH {protocol}: {example}")
                grown.append(answer["grown_mb"])
                report(f"talk.fuzz_{protocol}", [answer["crashes"]], unit, goal=0)
    report("talk.fuzz_growth", [max(grown)], "MB", goal=GROWTH_MB)


def _attack(daemon: Forged, honest: Child, attacker: Child) -> None:
    """All attacks in turn, with the honest calls' times alone and beside each."""
    alone, beside = list[float](), {name: list[float]() for name in ATTACKS}
    honest.ask("calls", seconds=ATTACK_S)
    for attack in ATTACKS:  # what a first attack makes the daemon import and cache is no growth
        _one(honest, attacker, attack, 0)
    before_mb, pid = daemon.rss_mb, daemon.pid
    for number in range(1, ATTACK_ROUNDS + 1):
        progress(
            f"attacks, round {number} of {ATTACK_ROUNDS}; the daemon has {daemon.rss_mb:.0f} MB"
        )
        alone.append(percentile(honest.ask("calls", seconds=ATTACK_S)["ms"], 0.99))
        for attack in ATTACKS:
            beside[attack].append(percentile(_one(honest, attacker, attack, number), 0.99))
    for attack in ATTACKS:
        report(
            *(f"talk.hostile_p99_{attack}", beside[attack], "ms"),
            against="no attack",
            against_values=alone,
            goal_ratio=P99_RATIO,
        )
    report("talk.hostile_growth", [daemon.rss_mb - before_mb], "MB", goal=GROWTH_MB)
    survives = daemon.client.status().pid == pid
    report("talk.hostile_crashes", [0 if survives else 1], "crashes", goal=0)


def _one(honest: Child, attacker: Child, attack: str, number: int) -> list[float]:
    more: dict[str, object] = {}
    if attack == "half_open":
        more["count"] = STREAMS
    if attack == "garbage":
        more["seed"] = number
    attacker.tell(attack, seconds=ATTACK_S, **more)
    times: list[float] = honest.ask("calls", seconds=ATTACK_S)["ms"]
    progress(f"  {attack}: {attacker.wait()['done']}")
    return times


def main() -> None:
    """Fuzz, then attack."""
    _fuzz()
    with daemons(1) as (daemon,), ExitStack() as stack:
        address, ticket = daemon.client.id().addresses[0], daemon.client.ticket()
        argv = [sys.executable, "-m", "benchmarks.hostile_node", address, ticket]
        honest = stack.enter_context(Child("honest", argv))
        attacker = stack.enter_context(Child("attacker", ["nice", "-n", "19", *argv]))
        try:
            _attack(daemon, honest, attacker)
        except Failed as error:
            report("talk.hostile_crashes", [], "crashes", goal=0, why=str(error))


if __name__ == "__main__":
    main()
