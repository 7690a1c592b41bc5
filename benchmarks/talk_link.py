"""Over 10 ms of delay each way: round trips that a call costs, and bulk beside one TCP stream.

`python -m benchmarks.talk_link`; needs root (network namespaces, /dev/net/tun).
"""

import statistics
import tempfile
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from benchmarks.contest import Contest
from benchmarks.delay_line import IPS, link
from benchmarks.orders import Failed
from benchmarks.report import QUICK, ROUNDS, progress, report
from benchmarks.systems import Pair, lattica_pair, shoal_pair, socket_pair

DELAY_MS = 10.0  # one way
CALLS = 5 if QUICK else 30
BULK_BYTES = 50_000_000 if QUICK else 250_000_000
BULK = ("talk.link_bulk", "MB/s")
RTTS = ("talk.link_rpc_rtts", "round trips")


def _round_trips(contest: Contest, plain: Pair) -> None:
    progress(f"calls over {DELAY_MS:g} ms of delay each way")
    at = {"kind": "tcp", "ip": IPS[1], "port": plain.server.hello["tcp"]}
    rtt_ms = statistics.median(plain.client.ask("echo", calls=CALLS, **at)["ms"])
    progress(f"one round trip is {rtt_ms:.2f} ms")
    answers = contest.rounds(ROUNDS, "unary", size=16, calls=CALLS)
    rtts = {
        name: [statistics.median(answer["ms"]) / rtt_ms for answer in got]
        for name, got in answers.items()
    }
    report(
        *(RTTS[0], rtts["shoal"], RTTS[1]),
        goal=1.1,  # a tenth of a round trip, 2 ms, for both ends' work on a busy machine
        against="lattica TCP",
        against_values=rtts.get("lattica", []),
        why=contest.why.get("lattica", ""),
    )


def _bulk(shoal: Pair, plain: Pair) -> None:
    """One order to each in turn. The first two rounds open the connections and their windows."""
    ours, theirs = list[float](), list[float]()
    at = {"kind": "tcp", "ip": IPS[1], "port": plain.server.hello["tcp"]}
    for child in (plain.server, plain.client, shoal.server, shoal.client):
        child.ask("prepare", size=BULK_BYTES)
    for number in range(ROUNDS + 2):
        progress(f"bulk over the delay, {number} of {ROUNDS + 1}")
        rates = (
            shoal.client.ask("bulk", size=BULK_BYTES)["mb_s"],
            plain.client.ask("send", size=BULK_BYTES, **at)["mb_s"],
        )
        if number >= 2:
            ours.append(rates[0])
            theirs.append(rates[1])
    report(
        *(BULK[0], ours, BULK[1]),
        better="higher",
        against="one plain TCP stream",
        against_values=theirs,
        goal_ratio=0.9,
    )


def main() -> None:
    """Measure both; say why not where the delay line cannot be made."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-")))
        try:
            here, there = stack.enter_context(link(DELAY_MS))
        except Failed as error:
            report(RTTS[0], [], RTTS[1], goal=1.1, why=str(error))
            report(BULK[0], [], BULK[1], better="higher", goal_ratio=0.9, why=str(error))
            return
        plain = stack.enter_context(socket_pair(folder, there, here, IPS[1]))
        contest = Contest(stack)
        contest.enter("shoal", partial(shoal_pair, there, here, IPS[1]))
        contest.enter("lattica", partial(lattica_pair, there, here, IPS[1], IPS[0]))
        _round_trips(contest, plain)
        _bulk(contest.pairs["shoal"], plain)


if __name__ == "__main__":
    main()
