"""How fast peers call each other: Shoal beside Lattica and plain TCP, in turn, on loopback.

`python -m benchmarks.talk_rpc` prints one JSON object a line. QUICK=1 takes fewer samples.
"""

import statistics
from contextlib import ExitStack
from functools import partial

from benchmarks.contest import Contest
from benchmarks.report import QUICK, ROUNDS, percentile, progress, report
from benchmarks.systems import lattica_pair, plain_pair, shoal_pair

CALLS = 60 if QUICK else 400  # of one round of round trips
RATE_CALLS = {1: CALLS, 10: 2 * CALLS, 100: 3 * CALLS}  # of one round, by how many are in flight
BIG = 256 * 1024
MIB = 1024 * 1024
RATE_GOAL = 1.5  # times Lattica's
DOWN_GOAL = 5.0
RIVAL = "lattica TCP"


def _latency(contest: Contest) -> None:
    progress("round trips of 16 B")
    answers = contest.rounds(ROUNDS, "unary", size=16, calls=CALLS)
    medians = {name: [statistics.median(a["ms"]) for a in got] for name, got in answers.items()}
    tails = {name: [percentile(a["ms"], 0.99) for a in got] for name, got in answers.items()}
    rival, plain = medians.get("lattica", []), medians["plain"]
    why = contest.why.get("lattica", "")
    report(
        "talk.rpc_p50",
        medians["shoal"],
        "ms",
        against=RIVAL,
        against_values=rival,
        goal_ratio=0.6,
        why=why,
    )
    report("talk.rpc_p50_stretch", medians["shoal"], "ms", goal=0.2)
    report(
        "talk.rpc_p50_over_plain",
        medians["shoal"],
        "ms",
        against="plain TCP, trio",
        against_values=plain,
    )
    report(
        "talk.rpc_p99",
        tails["shoal"],
        "ms",
        against=RIVAL,
        against_values=tails.get("lattica", []),
        why=why,
    )


def _versus(
    contest: Contest, bench: str, unit: str, goal_ratio: float, order: str, **arguments: object
) -> None:
    """Report one rate beside Lattica's."""
    progress(bench)
    key = "per_s" if unit == "calls/s" else "mb_s"
    answers = contest.rounds(ROUNDS, order, **arguments)
    rates = {name: [answer[key] for answer in got] for name, got in answers.items()}
    report(
        bench,
        rates["shoal"],
        unit,
        better="higher",
        against=RIVAL,
        against_values=rates.get("lattica", []),
        goal_ratio=goal_ratio,
        why=contest.why.get("lattica", ""),
    )


def measure(contest: Contest) -> None:
    """Give orders to shoal, lattica and plain in turn."""
    _latency(contest)
    plain = contest.pairs.pop("plain")
    against = partial(_versus, contest)
    for at_once, calls in RATE_CALLS.items():
        name = f"talk.rpc_rate_{at_once}"
        against(name, "calls/s", RATE_GOAL, "rate", size=16, calls=calls, at_once=at_once)
    big = CALLS // 2
    against("talk.rpc_256k_10", "MB/s", RATE_GOAL, "rate", size=BIG, calls=big, at_once=10)
    against("talk.stream_up_1m", "MB/s", RATE_GOAL, "up", size=MIB, calls=CALLS // 4)
    for name, size in (("128k", BIG // 2), ("256k", BIG), ("1m", MIB)):
        calls = max(5, CALLS * 32_768 // size)
        against(f"talk.down_{name}", "MB/s", DOWN_GOAL, "down", size=size, calls=calls)
    contest.pairs["plain"] = plain


def main() -> None:
    """Measure all of it."""
    with ExitStack() as stack:
        contest = Contest(stack)
        contest.enter("shoal", shoal_pair)
        contest.enter("lattica", lattica_pair)
        contest.enter("plain", plain_pair)
        measure(contest)


if __name__ == "__main__":
    main()
