"""What the network does to two nodes that talk, and how soon they talk again; and what a transfer
that began through a relay still sends through it once there is a direct path.

`python -m benchmarks.reach_repair`. Real daemons in the NAT lab. Every call is made after the event
and has a second; the time is that of the first that is answered.
"""

import contextlib
import os
import time
from collections.abc import Callable
from pathlib import Path

import shoal
from benchmarks.reach_stage import DELAY_MS, RELAYS, Stage, stage
from benchmarks.report import QUICK, progress, report
from tests.net.lab.lab import Site

GOAL_S = 10.0
CALL_S = 1.0
GIVE_UP_S = 60.0
SETTLE_S = 20.0  # for a pair to become direct, before and between events
ROUNDS = 1 if QUICK else 5
SIZE = (20 if QUICK else 100) * 10**6  # bytes of the transfer
SITES = [
    Site("a", "portrestricted", delay_ms=DELAY_MS),
    Site("b", "portrestricted", delay_ms=DELAY_MS),
    Site("c", "restricted", hosts=0, delay_ms=DELAY_MS),  # where a host moves to
    Site("s", "symmetric", delay_ms=DELAY_MS),
]
TOPIC = "bench-reach"


def _resumes(it: Stage, one: str, other: str) -> float | None:
    """Return the seconds until a call is answered, each begun after now; None if none was."""
    began = time.monotonic()
    while (spent := time.monotonic() - began) < GIVE_UP_S:
        with contextlib.suppress(shoal.ClientError):
            it.call(one, other, timeout_s=CALL_S)
            return time.monotonic() - began
        time.sleep(0.05 if spent < 1 else 0.2)
    return None


def _event(it: Stage, name: str, happen: Callable[[], None], one: str, other: str) -> None:
    """Let something happen between two nodes; report calls, store and gossip afterwards."""
    times, gossip_s, lost = list[float](), list[float](), 0
    for number in range(ROUNDS):
        it.await_direct(one, other, timeout_s=SETTLE_S if one[0] != "s" else 0.1)
        it.call(one, other)
        key = f"{name}-{number}"
        it.nodes[one].client.store.put(key, "acknowledged")
        happen()
        took_s = _resumes(it, one, other)
        times.append(GIVE_UP_S if took_s is None else took_s)
        progress(f"{name}: calls after {times[-1]:.1f} s")
        gossip_s.append(_store_arrives(it, one, other, f"{key}-after"))
        lost += it.nodes[other].client.store.get(key) != "acknowledged"
    report(f"reach.repair_{name}", times, "s to the first call", goal=GOAL_S)
    report(f"reach.repair_{name}_gossip", gossip_s, "s from a write to the other end")
    report(f"reach.repair_{name}_lost", [lost], "acknowledged writes lost", goal=0)


def _store_arrives(it: Stage, one: str, other: str, key: str) -> float:
    """Write at one end; return the seconds until the other shows it (it travels by gossip)."""
    it.nodes[one].client.store.put(key, 1)
    began = time.monotonic()
    while time.monotonic() - began < GIVE_UP_S:
        if it.nodes[other].client.store.get(key) == 1:
            return time.monotonic() - began
        time.sleep(0.05)
    return GIVE_UP_S


def _relay_killed(it: Stage) -> Callable[[], None]:
    """Kill -9 the relay that carries the traffic between s1 and a1: the one that moved more."""

    def happen() -> None:
        before = {name: it.lab.counters(name).received for name in RELAYS if name in it.nodes}
        it.call("s1", "a1")
        grown = {name: it.lab.counters(name).received - old for name, old in before.items()}
        victim = max(grown, key=grown.__getitem__)
        progress(f"killing {victim}, which carried {grown[victim]} B of a call")
        it.nodes.pop(victim).kill()

    return happen


def _share(it: Stage) -> None:
    """Reset the direct path, begin a transfer at once, and count what crosses the relays after the
    direct path stands again.
    """
    source = Path(it.folder, "payload")
    source.write_bytes(os.urandom(SIZE))
    it.await_direct("a1", "b1", timeout_s=SETTLE_S)
    cid = it.nodes["a1"].client.add(source).cid
    it.sever("a1", "b1")
    client, at_upgrade = it.nodes["b1"].client, -1
    began = time.monotonic()
    for _ in client.blob_events(f"/v1/blobs/{cid}/get", {}):
        if at_upgrade < 0 and it.has_socket("a1", "b1"):
            at_upgrade = _crossed(it)
            progress(f"direct {time.monotonic() - began:.1f} s after the reset")
    progress(f"{SIZE / 1e6:.0f} MB arrived after {time.monotonic() - began:.1f} s")
    why = "" if at_upgrade >= 0 else "it ended before the direct path stood"
    share = [100 * (_crossed(it) - at_upgrade) / SIZE] if at_upgrade >= 0 else []
    report("reach.relayed_share", share, "% of the transfer, after the upgrade", goal=1, why=why)


def _crossed(it: Stage) -> int:
    return sum(it.lab.counters(name).received for name in RELAYS if name in it.nodes)


def main() -> None:
    """The transfer, then each event, the relay's death last: it does not come back."""
    with stage(SITES) as it:
        it.up(["a1", "b1", "s1"])
        for one, other in (("a1", "b1"), ("s1", "a1")):
            it.await_talk(one, other, timeout_s=GIVE_UP_S)
        _share(it)
        lab = it.lab
        _event(it, "router_restart", lambda: lab.nat_reboot("a"), "a1", "b1")
        _event(it, "new_address", lambda: lab.renumber("a"), "a1", "b1")
        homes = ["c", "a"] * ROUNDS
        _event(it, "moves", lambda: lab.move_host("a1", homes.pop(0)), "a1", "b1")
        _once(it)


def _once(it: Stage) -> None:
    """A relay can be killed once."""
    happen = _relay_killed(it)
    happen()
    took_s = _resumes(it, "s1", "a1")
    values = [GIVE_UP_S if took_s is None else took_s]
    report("reach.repair_relay_killed", values, "s to the first call", goal=GOAL_S)
    why = "a run needs trainers beside the daemons; what it bears is in learn.freeze and learn.kill"
    report("reach.repair_runs", [], "s", why=why)


if __name__ == "__main__":
    main()
