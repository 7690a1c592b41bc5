"""A relay: the first byte through it, and what a hostile member can do to it.

`python -m benchmarks.reach_relay`. The relay is a real daemon in the NAT lab, and so is the node
behind it; who calls and who attacks are hosts of their own. The attacker's process has the lowest
priority: a real one has a machine of its own.
"""

import os
import random
import statistics
import sys
import time
from contextlib import ExitStack
from pathlib import Path

from benchmarks.orders import Child
from benchmarks.reach_stage import DELAY_MS, Stage, stage
from benchmarks.report import QUICK, percentile, progress, report
from shoal.reach import NetCheck
from tests.net.lab.lab import Site

CALLS = 5 if QUICK else 50
ATTACK_S = 1.5 if QUICK else 10.0
FLOOD_PER_S = 1_000
GROWTH_MB = 20.0
P99_RATIO = 3.0
READY_S = 40.0
SITES = [
    Site("s", "symmetric", delay_ms=DELAY_MS),  # who is called
    Site("t", "symmetric", hosts=2, delay_ms=DELAY_MS),  # who calls, and who attacks
]


def _child(stack: ExitStack, it: Stage, host: str, *, nice: bool = False) -> Child:
    """Start a member in a host of the lab."""
    argv = [sys.executable, "-m", "benchmarks.reach_node", it.ticket]
    argv = ["nice", "-n", "19", *argv] if nice else argv
    return stack.enter_context(it.lab.hosts[host].call(lambda: Child(host, argv)))


def _relay_address(it: Stage) -> str:
    """Wait until the hidden node announces an address at the relay; return that."""
    end = time.monotonic() + READY_S
    while True:
        net: NetCheck = it.nodes["s1"].client.netcheck()
        found = [one.address for one in net.announced if one.origin == "relay"]
        if found:
            return found[0]
        if time.monotonic() > end:
            raise RuntimeError(f"no relay is held: {net.reachability}, {net.evidence}")
        time.sleep(0.2)


def _first_byte(it: Stage, caller: Child) -> None:
    target = _relay_address(it)
    relay = target.partition("/p2p-circuit")[0]
    found = caller.ask("first_calls", relay=relay, target=target, count=CALLS, timeout_s=120)
    rtt_ms = statistics.median(found["rtt_ms"])
    goal = round(4 * rtt_ms + 50, 1)
    progress(f"round trip through the relay {rtt_ms:.1f} ms")
    report("reach.first_byte", found["ms"], "ms", goal=goal)


def _rss_mb(pid: int) -> float:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def _attacks(it: Stage, honest: Child, attacker: Child) -> None:
    node = it.nodes["pub1"]
    relay = next(one for one in node.client.id().addresses if "/ip4/11." in one)
    pid = node.client.status().pid
    honest.ask("calls", relay=relay, seconds=0.5)
    attacker.ask("flood", relay=relay, seconds=0.3, per_s=100)  # what it imports is no growth
    alone = honest.ask("calls", relay=relay, seconds=ATTACK_S)["ms"]
    before_mb = _rss_mb(pid)
    orders: dict[str, dict[str, object]] = {"flood": {}, "garbage": {"seed": random.randrange(99)}}
    for attack, more in orders.items():
        attacker.tell(attack, relay=relay, seconds=ATTACK_S, per_s=FLOOD_PER_S, **more)
        beside = honest.ask("calls", relay=relay, seconds=ATTACK_S)
        said = attacker.wait()
        progress(f"{attack}: {said['per_s']:.0f}/s over {said['connections']} connections")
        report(f"reach.{attack}_rate", [said["per_s"]], "requests/s of one peer", better="higher")
        report(
            f"reach.{attack}_p99", [percentile(beside["ms"], 0.99)], "ms",
            against="no attack", against_values=[percentile(alone, 0.99)], goal_ratio=P99_RATIO,
        )  # fmt: skip
        report(f"reach.{attack}_refused", [beside["refused"]], "reservations of others", goal=0)
    report("reach.attacks_growth", [_rss_mb(pid) - before_mb], "MB of the relay", goal=GROWTH_MB)
    survives = node.client.status().pid == pid
    report("reach.attacks_crashes", [0 if survives else 1], "crashes", goal=0)


def main() -> None:
    """First bytes, then attacks."""
    with stage(SITES, relays=["pub1"]) as it, ExitStack() as stack:
        it.up(["s1"])
        caller, attacker = _child(stack, it, "t1"), _child(stack, it, "t2", nice=True)
        assert attacker.hello
        _first_byte(it, caller)
        _attacks(it, caller, attacker)


if __name__ == "__main__":
    main()
