"""Bulk: 1 GB between two nodes beside blocking TLS sockets in threads and Lattica's best rate up,
and what a small call to the same peer waits meanwhile.

`python -m benchmarks.talk_bulk` prints one JSON object a line. QUICK=1 moves 100 MB.
"""

import tempfile
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from benchmarks.contest import Contest
from benchmarks.report import QUICK, ROUNDS, percentile, progress, report
from benchmarks.systems import lattica_pair, shoal_pair, socket_pair

BULK_BYTES = 100_000_000 if QUICK else 1_000_000_000
LINKS = (1, 2)  # connections of the sockets, a thread at each end; the better one counts
LATTICA_SIZE = 256 * 1024  # unary calls of this size, 100 in flight, are the best it does
LATTICA_CALLS = 100 if QUICK else 800


def measure(contest: Contest) -> None:
    """Give orders to shoal, sockets and lattica in turn."""
    shoal, sockets = contest.pairs["shoal"], contest.pairs["sockets"]
    hello = sockets.server.hello
    tls = {"kind": "tls", "ip": hello["ip"], "port": hello["tls"]}
    for child in (shoal.server, shoal.client, sockets.server, sockets.client):
        child.ask("prepare", size=BULK_BYTES)
    ours, threads, rival, tails = list[float](), list[float](), list[float](), list[float]()
    for number in range(ROUNDS + 1):
        progress(f"bulk of {BULK_BYTES / 1e6:.0f} MB, {number} of {ROUNDS}")
        alone = shoal.client.ask("bulk", size=BULK_BYTES)["mb_s"]
        limit = max(
            sockets.client.ask("send", size=BULK_BYTES, links=links, **tls)["mb_s"]
            for links in LINKS
        )
        beside = shoal.client.ask("bulk_beside_calls", size=BULK_BYTES)["ms"]
        best = contest.ask("lattica", "rate", size=LATTICA_SIZE, calls=LATTICA_CALLS, at_once=100)
        if number:
            ours.append(alone)
            threads.append(limit)
            tails.append(percentile(beside, 0.99))
            rival += [best["mb_s"]] if best is not None else []
    higher = partial(report, better="higher")
    higher(
        *("talk.bulk", ours, "MB/s"),
        against="TLS sockets in threads",
        against_values=threads,
        goal_ratio=0.6,
    )
    higher(
        *("talk.bulk_over_lattica", ours, "MB/s"),
        against="lattica TCP, 256 KB calls, 100 in flight",
        against_values=rival,
        goal_ratio=3.0,
        why=contest.why.get("lattica", ""),
    )
    report("talk.bulk_call_p99", tails, "ms", goal=10.0)


def main() -> None:
    """Measure all of it."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-")))
        contest = Contest(stack)
        contest.enter("shoal", shoal_pair)
        contest.enter("sockets", partial(socket_pair, folder))
        contest.enter("lattica", lattica_pair)
        measure(contest)


if __name__ == "__main__":
    main()
