"""Every pair of the ten types of router: does it talk, is it direct, how soon, and how reliably?
And what each daemon says of itself in `shoal netcheck`.

`python -m benchmarks.reach_pairs`. Real daemons in the NAT lab, 10 ms one way; a path is what the
sockets' byte counters say. QUICK=1 takes four types, and two trials a pair.
"""

import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from itertools import combinations_with_replacement

from benchmarks.reach_stage import DELAY_MS, Stage, stage
from benchmarks.report import QUICK, percentile, progress, report
from shoal.errors import ClientError
from shoal.reach import NetCheck
from tests.net.lab.lab import Site
from tests.net.lab.rules import KINDS, Kind
from tests.net.matrix import hosts_of, plan_of
from tests.net.truth import Pair, can_be_direct

KINDS_HERE: tuple[Kind, ...] = ("open", "portrestricted", "symseq", "symmetric")
USED = KINDS_HERE if QUICK else KINDS
PAIRS: list[Pair] = list(combinations_with_replacement(USED, 2))
TRIALS = int(os.environ.get("TRIALS", "0")) or (2 if QUICK else 50)  # a pair
AT_ONCE = 2  # pairs that are measured at a time, for two cores
LOOKED_AT_ONCE = 6  # that are waited for, which costs less
TALK_S = 10.0 if QUICK else 20.0
DIRECT_S = 10.0 if QUICK else 20.0
VERDICT_S = 20.0 if QUICK else 60.0
POLL_S = 0.02
WITHOUT_PREDICTION = 37  # of the 55 pairs; facts: tests/net/truth.py
PREDICTED: tuple[Kind, ...] = ("fw", "portrestricted", "symseq", "cgnat", "udpblock")

# What netcheck must say of each type: reachability, mapping.
VERDICTS: dict[Kind, tuple[str, str]] = {
    "open": ("public", "none"),
    "fw": ("punchable", "none"),
    "fullcone": ("public", "endpoint-independent"),
    "restricted": ("punchable", "endpoint-independent"),
    "portrestricted": ("punchable", "endpoint-independent"),
    "symmetric": ("relayed", "random"),
    "symseq": ("punchable", "sequential"),
    "cgnat": ("punchable", "endpoint-independent"),
    "cgnat-sym": ("relayed", "random"),
    "udpblock": ("punchable", "endpoint-independent"),
}
SIXES = [
    Site("six-open", "symmetric", delay_ms=DELAY_MS, ipv6="open"),
    Site("six-fw", "symmetric", delay_ms=DELAY_MS, ipv6="firewalled"),
]


def needs_prediction(pair: Pair) -> bool:
    """Whether plain sockets are direct only if they guess the next port."""
    return "symseq" in pair and all(kind in PREDICTED for kind in pair)


def _each(pairs: list[Pair], work: Callable[[Pair], None], at_once: int = AT_ONCE) -> None:
    with ThreadPoolExecutor(at_once) as pool:
        list(pool.map(work, pairs))


def _matrix(it: Stage) -> None:
    """Count the pairs that talk, and those that are direct."""
    talk, direct = dict[Pair, bool](), dict[Pair, bool]()

    def look(pair: Pair) -> None:
        one, other = hosts_of(pair)
        talk[pair] = it.await_talk(one, other, timeout_s=TALK_S) is not None
        wait_s = DIRECT_S if can_be_direct(*pair) else 0.1
        direct[pair] = it.await_direct(one, other, timeout_s=wait_s) is not None

    _each(PAIRS, look, LOOKED_AT_ONCE)
    possible = [pair for pair in PAIRS if can_be_direct(*pair)]
    plain = [pair for pair in possible if not needs_prediction(pair)]
    assert QUICK or (len(plain), len(possible)) == (WITHOUT_PREDICTION, 42)
    unit = f"of {len(PAIRS)} pairs"
    report("reach.talk", [sum(talk.values())], unit, better="higher", goal=len(PAIRS))
    report("reach.direct", [sum(direct.values())], unit, better="higher", goal=len(possible))
    found = sum(direct[pair] for pair in plain)
    report(
        "reach.direct_unpredicted", [found], f"of {len(plain)} pairs", better="higher",
        goal=len(plain),
    )  # fmt: skip
    for pair in PAIRS:
        if not talk[pair] or direct[pair] != can_be_direct(*pair):
            progress(f"{pair}: talks {talk[pair]}, direct {direct[pair]}")


def _trials(it: Stage) -> None:
    """Reset the direct connection of every possible pair, again and again, until it is direct."""
    pairs = [pair for pair in PAIRS if can_be_direct(*pair)]
    good = dict.fromkeys(pairs, 0)
    times = list[float]()

    def once(pair: Pair) -> None:
        took_s = _again(it, *hosts_of(pair))
        good[pair] += took_s is not None
        if took_s:
            times.append(took_s)

    # In turn: after six, a node lets a peer ask for a punch every 20 s only.
    for number in range(TRIALS):
        progress(f"trial {number + 1} of {TRIALS} of each of {len(pairs)} pairs")
        _each(pairs, once)
    for pair in pairs:
        if good[pair] < TRIALS:
            progress(f"{pair}: direct in {good[pair]} of {TRIALS} trials")
    unit = f"s, {len(times)} trials"
    why = "" if times else "no relayed connection was seen to become direct"
    report("reach.time_to_direct", times, unit, goal=1.5, why=why)
    p95 = [percentile(times, 0.95)] if times else []
    report("reach.time_to_direct_p95", p95, unit, goal=4.0, why=why)
    shares = [100 * found / TRIALS for found in good.values()]
    unit = f"% of {TRIALS} trials"
    report("reach.success", [sum(shares) / len(shares)], unit, better="higher", goal=98)
    report("reach.success_worst_pair", [min(shares)], unit, better="higher", goal=98)


def _again(it: Stage, one: str, other: str) -> float | None:
    """Reset what is direct; return the seconds from relayed to direct, 0 if it was dialled directly
    at once, None if it did not become direct in time.
    """
    it.sever(one, other)
    client, peer = it.nodes[one].client, it.nodes[other].peer
    end, relayed_at = time.monotonic() + DIRECT_S, 0.0
    while (now := time.monotonic()) < end:
        with suppress(ClientError):  # a call that was on its way when the path changed
            if it.has_socket(one, other) and it.judge(one, other) == "direct":
                return now - relayed_at if relayed_at else 0.0
        path = next((each.path for each in client.peers() if each.peer == peer), "")
        if path == "relayed" and not relayed_at:
            relayed_at = time.monotonic()
        time.sleep(POLL_S)
    return None


def _verdicts(it: Stage) -> None:
    """Compare what netcheck says with what the lab is."""
    wanted = {hosts_of((kind, kind))[0]: VERDICTS[kind] for kind in USED}

    def look(host: str) -> bool:
        return _await(it, host, lambda net: (net.reachability, net.mapping) == wanted[host])

    with ThreadPoolExecutor(AT_ONCE) as pool:
        right = sum(pool.map(look, wanted))
    unit = f"of {len(wanted)} types"
    report("reach.netcheck", [right], unit, better="higher", goal=len(wanted))
    sixes = {"six-open1": "public", "six-fw1": "punchable"}
    right = 0
    for host, state in sixes.items():
        right += _await(it, host, partial(_is_ipv6, state))
    report("reach.netcheck_ipv6", [right], "of 2 cases", better="higher", goal=2)


def _is_ipv6(state: str, net: NetCheck) -> bool:
    return net.ip6 == state


def _await(it: Stage, host: str, is_right: Callable[[NetCheck], bool]) -> bool:
    end = time.monotonic() + VERDICT_S
    while True:
        net = it.nodes[host].client.netcheck()
        if is_right(net):
            return True
        if time.monotonic() > end:
            progress(f"{host}: {net.reachability}, {net.ip4}, {net.ip6}, {net.mapping}")
            for line in net.evidence:
                progress(f"  {line}")
            return False
        time.sleep(0.5)


def main() -> None:
    """All of it in one lab."""
    with stage([*plan_of(PAIRS, delay_ms=DELAY_MS), *SIXES], public_ipv6=True) as it:
        hosts = [name for name in it.lab.hosts if not name.startswith("pub")]
        it.up(hosts)
        progress(f"{len(hosts)} daemons behind routers")
        _matrix(it)
        _verdicts(it)
        _trials(it)


if __name__ == "__main__":
    main()
