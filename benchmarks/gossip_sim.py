"""Gossip in a simulated swarm of 1,000 nodes: what arrives, in how many copies and hops.

The real machines (protocols/channels) on one event heap: about 30 connections a node, links of 10
to 50 ms, 100 Mbit/s uplinks. The figures do not depend on the machine; the time to run does.
Run: `python -m benchmarks.gossip_sim`; `QUICK=1` for 250 nodes.
"""

import os
import sys

from benchmarks.report import report
from tests.sim.gossip_heap import Outcome, Scenario, Swarm

QUICK = bool(os.environ.get("QUICK"))
NODES = 250 if QUICK else 1000
SMALL, LARGE = 1024, 32 * 1024


def play(name: str, scenario: Scenario) -> Outcome:
    outcome = Swarm(scenario).run()
    sys.stderr.write(f"{name}: {outcome.expected} deliveries wanted, {outcome.control} control\n")
    return outcome


def main() -> None:
    for name, payload_bytes, copies in (("1k", SMALL, 7.0), ("32k", LARGE, 2.0)):
        calm = play(name, Scenario(NODES, messages=10, payload_bytes=payload_bytes))
        report(f"talk.gossip_sim_{name}_copies", [calm.copies], "payloads/node", goal=copies)
        report(f"talk.gossip_sim_{name}_hops_p99", [calm.hops_at(0.99)], "hops", goal=7)
        report(f"talk.gossip_sim_{name}_p99", [calm.delay_ms(0.99)], "ms")
        lossy = play(
            f"{name} loss",
            Scenario(NODES, messages=10, payload_bytes=payload_bytes, loss=0.05, leaving=0.2),
        )
        bench = f"talk.gossip_sim_{name}_loss"
        share = [100 * lossy.share]
        report(f"{bench}_delivered", share, "%", better="higher", goal=99.99)
        report(f"{bench}_copies", [lossy.copies], "payloads/node", goal=copies)
        report(f"{bench}_hops_p99", [lossy.hops_at(0.99)], "hops", goal=7)
        report(f"{bench}_p99", [lossy.delay_ms(0.99)], "ms")
        attacked = play(
            f"{name} hostile",
            Scenario(NODES // 2, messages=8, payload_bytes=payload_bytes, hostile=0.2, settle_s=8),
        )
        bench = f"talk.gossip_sim_{name}_hostile"
        share = [100 * attacked.share]
        report(f"{bench}_delivered", share, "%", better="higher", goal=99.9)
        report(f"{bench}_honest_dropped", [attacked.wronged], "peers", goal=0)


if __name__ == "__main__":
    main()
