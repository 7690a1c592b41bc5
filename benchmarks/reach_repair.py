"""What the network does to two nodes that talk, and how soon they talk again; and what a transfer
that began through a relay still sends through it once there is a direct path.

`python -m benchmarks.reach_repair`. Real daemons in the NAT lab. Every call is made after the event
and has 10 s; one that fails is made again; the time is that of the first answer.
"""

import contextlib
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import shoal
from benchmarks.reach_stage import DELAY_MS, Stage, stage
from benchmarks.report import QUICK, progress, report
from tests.net.lab.lab import Site

GOAL_S = 10.0
CALL_S = 10.0  # of one call: as long as a path may take to be replaced
GIVE_UP_S = 60.0
POLL_S = 0.02
SETTLE_S = 5.0 if QUICK else 20.0  # for a pair to become direct, before and between events
ROUNDS = 1 if QUICK else 5
SIZE = (20 if QUICK else 100) * 10**6  # bytes of the transfer
SITES = [
    Site("a", "portrestricted", delay_ms=DELAY_MS),
    Site("b", "portrestricted", delay_ms=DELAY_MS),
    Site("c", "restricted", hosts=0, delay_ms=DELAY_MS),  # where a host moves to
    Site("s", "symmetric", delay_ms=DELAY_MS),  # two that need a relay for ever
    Site("t", "symmetric", delay_ms=DELAY_MS),
]
RELAYS = ("pub1", "pub2", "pub3")  # two may go


def _resumes(it: Stage, one: str, other: str) -> float | None:
    """Return the seconds until a call is answered, each begun after now; None if none was."""
    began = time.monotonic()
    while (spent := time.monotonic() - began) < GIVE_UP_S:
        with contextlib.suppress(shoal.ClientError):
            it.call(one, other, timeout_s=CALL_S)
            return time.monotonic() - began
        time.sleep(0.05 if spent < 1 else 0.2)
    return None


def _event(it: Stage, name: str, happen: Callable[[], None]) -> None:
    """Let something happen to a1, which talks with b1; report calls, store and gossip after it."""
    one, other = "a1", "b1"
    times, gossip_s, lost = list[float](), list[float](), 0
    for number in range(ROUNDS):
        it.await_direct(one, other, timeout_s=SETTLE_S)
        it.await_talk(one, other, timeout_s=GIVE_UP_S)
        key = f"{name}-{number}"
        it.nodes[one].client.store.put(key, "acknowledged")
        happen()
        took_s = _resumes(it, one, other)
        times.append(GIVE_UP_S if took_s is None else took_s)
        progress(f"{name}: calls after {times[-1]:.1f} s")
        gossip_s.append(_store_arrives(it, one, other, f"{key}-after"))
        lost += _value(it, other, key) != "acknowledged"
    report(f"reach.repair_{name}", times, "s to the first call", goal=GOAL_S)
    report(f"reach.repair_{name}_gossip", gossip_s, "s from a write to the other end")
    report(f"reach.repair_{name}_lost", [lost], "acknowledged writes lost", goal=0)


def _store_arrives(it: Stage, one: str, other: str, key: str) -> float:
    """Write at one end; return the seconds until the other shows it (it travels by gossip)."""
    it.nodes[one].client.store.put(key, 1)
    began = time.monotonic()
    while time.monotonic() - began < GIVE_UP_S:
        if _value(it, other, key) == 1:
            return time.monotonic() - began
        time.sleep(0.05)
    return GIVE_UP_S


def _value(it: Stage, host: str, key: str) -> object:
    """Return what a node's store shows; None if nothing."""
    try:
        return it.nodes[host].client.store.get(key).value
    except shoal.ApiError as error:
        if error.code != "not_found":
            raise
        return None


def _carrier(it: Stage, one: str, other: str) -> str:
    """Name the relay that carries a call between two: the one that moved more."""
    it.await_talk(one, other, timeout_s=GIVE_UP_S)
    before = {name: it.lab.counters(name).received for name in RELAYS if name in it.nodes}
    it.call(one, other)
    grown = {name: it.lab.counters(name).received - old for name, old in before.items()}
    victim = max(grown, key=grown.__getitem__)
    progress(f"{victim} carried {grown[victim]} B of a call")
    return victim


def _relay_ends(it: Stage, name: str, end: Callable[[str], None]) -> None:
    """A relay can end once: there is one for each way."""
    victim = _carrier(it, "s1", "t1")
    end(victim)
    it.nodes.pop(victim).kill()
    took_s = _resumes(it, "s1", "t1")
    values = [GIVE_UP_S if took_s is None else took_s]
    report(f"reach.repair_relay_{name}", values, "s to the first call", goal=GOAL_S)


def _share(it: Stage) -> None:
    """Reset the direct path, begin a transfer at once, and count what crosses the relays after the
    direct path stands again.
    """
    source = Path(it.folder, "payload")
    source.write_bytes(os.urandom(SIZE))
    it.await_direct("a1", "b1", timeout_s=SETTLE_S)
    cid = it.nodes["a1"].client.add(source).cid
    it.sever("a1", "b1")
    at_upgrade, began, is_over = -1, time.monotonic(), threading.Event()

    def look() -> None:
        nonlocal at_upgrade
        while at_upgrade < 0 and not is_over.wait(POLL_S):
            if it.has_socket("a1", "b1"):
                at_upgrade = _crossed(it)
                progress(f"direct {time.monotonic() - began:.1f} s after the reset")

    with ThreadPoolExecutor(1) as pool:
        pool.submit(look)
        try:
            it.nodes["b1"].client.get(cid)
        finally:
            is_over.set()
    progress(f"{SIZE / 1e6:.0f} MB arrived after {time.monotonic() - began:.1f} s")
    why = "" if at_upgrade >= 0 else "it ended before the direct path stood"
    share = [100 * (_crossed(it) - at_upgrade) / SIZE] if at_upgrade >= 0 else []
    report("reach.relayed_share", share, "% of the transfer, after the upgrade", goal=1, why=why)


def _crossed(it: Stage) -> int:
    return sum(it.lab.counters(name).received for name in RELAYS if name in it.nodes)


def main() -> None:
    """The transfer, then each event, the relays' ends last: they do not come back."""
    with stage(SITES, relays=RELAYS) as it:
        it.up(["a1", "b1", "s1", "t1"])
        for one, other in (("a1", "b1"), ("s1", "t1")):
            it.await_talk(one, other, timeout_s=GIVE_UP_S)
        _share(it)
        lab, homes = it.lab, ["c", "a"] * ROUNDS
        _event(it, "router_restart", lambda: lab.nat_reboot("a"))
        _event(it, "new_address", lambda: lab.renumber("a"))
        _event(it, "moves", lambda: lab.move_host("a1", homes.pop(0)))
        _relay_ends(it, "killed", lambda name: it.nodes[name].kill())
        _relay_ends(it, "vanishes", lab.kill)
    why = "a run needs trainers beside the daemons; what it bears is in learn.freeze and learn.kill"
    report("reach.repair_runs", [], "s", why=why)


if __name__ == "__main__":
    main()
