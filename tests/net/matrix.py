"""Which pairs of router types talk, and which directly: real daemons, judged by their sockets.

`python -m tests.net.matrix [open-fw symseq-symseq …] [--delay-ms 10] [--json]`. In each
swarm: two public members, and up to ten private ones, each behind a router of a type asked for.
Exits with 1 if a pair can't talk, or isn't direct though plain sockets could be.
"""

import argparse
import json
import sys
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass

from benchmarks.reach_stage import DELAY_MS, Unavailable, stage
from benchmarks.report import progress
from tests.net import truth
from tests.net.lab.lab import Site
from tests.net.lab.rules import KINDS, Kind
from tests.net.swarm import Swarm
from tests.net.truth import Pair

TALK_S = 40.0
DIRECT_S = 90.0  # three tries, and again after 60 s: others count a sequential router up, too
MEMBERS_MAX = 10  # private ones of one swarm
AT_ONCE = 6  # pairs that are waited for at a time


@dataclass(frozen=True)
class Result:
    """One pair. `talk_s` and `direct_s` count from the moment when both daemons were ready."""

    one: Kind
    other: Kind
    talk_s: float | None
    direct_s: float | None
    possible: bool

    @property
    def is_right(self) -> bool:
        """Whether it talks, and is direct if it can be."""
        return self.talk_s is not None and (self.direct_s is not None or not self.possible)


def hosts_of(pair: Pair) -> tuple[str, str]:
    """Return the two hosts of a pair."""
    return f"{pair[0]}-a1", f"{pair[1]}-b1"


def plan_of(pairs: Iterable[Pair], *, delay_ms: float) -> list[Site]:
    """Return the sites that these pairs need."""
    hosts = {host: kind for pair in pairs for host, kind in zip(hosts_of(pair), pair, strict=True)}
    return [Site(host.removesuffix("1"), kind, delay_ms=delay_ms) for host, kind in hosts.items()]


def measure(made: Swarm, pair: Pair, ready: float) -> Result:
    """Wait until a pair talks and, unless that is known to be impossible, is direct."""
    one, other = hosts_of(pair)
    possible = truth.can_be_direct(*pair)
    begun = time.monotonic() - ready
    talk_s = made.await_talk(one, other, timeout_s=TALK_S)
    if talk_s is None:
        return Result(*pair, None, None, possible)
    talk_s += begun
    since = time.monotonic() - ready
    waited = made.await_direct(one, other, timeout_s=DIRECT_S if possible else 0.1)
    direct_s = None if waited is None else since + waited
    return Result(*pair, round(talk_s, 2), direct_s and round(direct_s, 2), possible)


def batches(pairs: Iterable[Pair]) -> list[list[Pair]]:
    """Split pairs so that one swarm has ten private members at most: all of them meet each other,
    and twenty would spend a minute of a small machine on pairs that nobody asked for."""
    found: dict[tuple[bool, bool], list[Pair]] = {}
    for pair in pairs:
        one, other = (KINDS.index(kind) < len(KINDS) // 2 for kind in pair)
        found.setdefault((one, other), []).append(pair)
    together = [pair for batch in found.values() for pair in batch]
    return list(found.values()) if len(plan_of(together, delay_ms=0)) > MEMBERS_MAX else [together]


def run(pairs: Iterable[Pair], *, delay_ms: float) -> list[Result]:
    """Measure all pairs, in labs and swarms that are built for it. Raises Unavailable."""
    return [result for batch in batches(pairs) for result in _run(batch, delay_ms=delay_ms)]


def _run(pairs: list[Pair], *, delay_ms: float) -> list[Result]:
    plan = plan_of(pairs, delay_ms=delay_ms)
    with stage(plan) as made:
        made.up(f"{site.name}1" for site in plan)
        ready = time.monotonic()
        progress(f"{len(plan)} private members are ready")
        with ThreadPoolExecutor(AT_ONCE) as pool:
            results = list(pool.map(lambda pair: measure(made, pair, ready), pairs))
        progress(f"{len(pairs)} pairs in {time.monotonic() - ready:.1f} s")
    return results


def table(results: list[Result]) -> str:
    """Return the matrix: seconds to direct, `relay`, or what is wrong in capitals."""
    cells = {(each.one, each.other): _cell(each) for each in results}
    kinds = [kind for kind in KINDS if any(kind in pair for pair in cells)]
    width = max(len(kind) for kind in kinds) + 1
    lines = ["".ljust(width) + "".join(kind.rjust(width) for kind in kinds)]
    for row in kinds:
        line = row.ljust(width)
        lines.append(line + "".join(cells.get((row, col), "").rjust(width) for col in kinds))
    talk = sum(each.talk_s is not None for each in results)
    direct = sum(each.direct_s is not None for each in results)
    possible = sum(each.possible for each in results)
    lines.append(
        f"{len(results)} pairs: {talk} talk, {direct} are direct ({possible} can be over TCP)"
    )
    return "\n".join(lines)


def _cell(result: Result) -> str:
    if result.talk_s is None:
        return "SILENT"
    if result.direct_s is not None:
        return f"{result.direct_s:.1f} s"
    return "RELAY" if result.possible else "relay"


def _pair(name: str) -> Pair:
    """Read KIND-KIND, in either order (a kind may have a dash in it)."""
    names = {f"{one}-{other}": pair for pair in truth.PAIRS for one, other in (pair, pair[::-1])}
    if name not in names:
        raise argparse.ArgumentTypeError(f"two of {', '.join(KINDS)}, with a dash between")
    return names[name]


def main() -> int:
    """Measure, print, and judge."""
    parser = argparse.ArgumentParser(prog="python -m tests.net.matrix")
    parser.add_argument("pairs", type=_pair, nargs="*", metavar="A-B", help="all 55 by default")
    parser.add_argument("--delay-ms", type=float, default=DELAY_MS)
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    try:
        results = run(dict.fromkeys(asked.pairs or truth.PAIRS), delay_ms=asked.delay_ms)
    except Unavailable as reason:
        print(reason, file=sys.stderr)
        return 1
    if asked.json:
        print(json.dumps([asdict(each) for each in results]))
    else:
        print(table(results))
    return 0 if all(each.is_right for each in results) else 1


if __name__ == "__main__":
    sys.exit(main())
