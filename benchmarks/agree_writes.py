"""The store on its disk: local writes, what peers push, opening, churn; beside bare SQLite.

`python -m benchmarks.agree_writes` prints one JSON object a line. What a store does is done in a
child of its own each time.
"""

import os
import sqlite3
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.orders import Answer, Child
from benchmarks.report import QUICK, ROUNDS, percentile, progress, report

WRITERS = 64
COUNT = 4_000 if QUICK else 40_000  # writes of one round
SINGLE = 200 if QUICK else 2_000  # writes one after the other
ROWS, ROWS_AT_ONCE = (1_000, 20_000) if QUICK else (5_000, 100_000)  # of bare SQLite
APPLY = 5_000 if QUICK else 40_000  # entries of a peer
OPEN = 20_000 if QUICK else 100_000  # live entries in a file
CHURN = 10_000 if QUICK else 100_000  # writes over 1,000 keys
CHURN_S = 300.0
TIMES = 1 if QUICK else ROUNDS

LOCAL_GOAL, SINGLE_GOAL = 8_000, 15
ISOLATED_GOAL, RUNS_GOAL = 10_000, 40_000
OPEN_GOAL_S, OPEN_GOAL_MB = 1.0, 150
CHURN_GOAL_KB = 400


def ask(order: str, **arguments: object) -> Answer:
    """Have a fresh process do one thing."""
    with Child("store", [sys.executable, "-m", "benchmarks.agree_store"]) as child:
        return child.ask(order, timeout_s=CHURN_S, **arguments)


class Files:
    """Names for files in one folder, a new one each time."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._count = folder, 0

    def new(self) -> str:
        """Return a path with nothing there."""
        self._count += 1
        place = self._folder / str(self._count)
        place.mkdir()
        return str(place / "store.db")


def _sqlite_per_s(path: str, rows: int, at_once: int) -> float:
    """Durable rows per second of bare SQLite, as wide as our entries."""
    database = sqlite3.connect(path, isolation_level=None)
    database.execute("PRAGMA journal_mode = WAL")
    database.execute("PRAGMA synchronous = FULL")
    database.execute("CREATE TABLE entry (row INTEGER PRIMARY KEY, body BLOB, signature BLOB)")
    body, signature = os.urandom(180), os.urandom(64)
    began = time.perf_counter()
    for _ in range(rows // at_once):
        database.execute("BEGIN")
        database.executemany(
            "INSERT INTO entry (body, signature) VALUES (?, ?)", [(body, signature)] * at_once
        )
        database.execute("COMMIT")
    seconds = time.perf_counter() - began
    database.close()
    return rows / seconds


def _local(files: Files) -> None:
    ours, single, many = list[float](), list[float](), list[float]()
    for number in range(TIMES):
        progress(f"local writes, round {number + 1} of {TIMES}")
        ours.append(ask("local", path=files.new(), writers=WRITERS, count=COUNT)["per_s"])
        single.append(_sqlite_per_s(files.new(), ROWS, 1))
        many.append(_sqlite_per_s(files.new(), ROWS_AT_ONCE, 1000))
    name, unit = "agree.local_set", "writes/s"
    report(name, ours, unit, better="higher", goal=LOCAL_GOAL)
    for rows, values in ((1, single), (1000, many)):
        report(
            *(f"{name}_beside_sqlite_{rows}", ours, unit),
            better="higher",
            against=f"sqlite3, {rows} rows a commit",
            against_values=values,
        )
    times = [percentile(ask("alone", path=files.new(), count=SINGLE)["ms"], 0.99)]
    report("agree.local_set_p99", times, "ms", goal=SINGLE_GOAL)


def _apply(files: Files) -> None:
    ours: dict[bool, list[float]] = {False: [], True: []}
    plain = list[float]()
    for number in range(TIMES):
        progress(f"what peers push, round {number + 1} of {TIMES}")
        plain.append(ask("verify", count=APPLY)["per_s"])
        for runs, values in ours.items():
            values.append(ask("apply", path=files.new(), count=APPLY, runs=runs)["per_s"])
    for runs, name, goal in ((False, "isolated", ISOLATED_GOAL), (True, "runs", RUNS_GOAL)):
        report(f"agree.apply_{name}", ours[runs], "entries/s", better="higher", goal=goal)
        report(
            *(f"agree.apply_{name}_beside_verify", ours[runs], "entries/s"),
            better="higher",
            against="Ed25519 verifications",
            against_values=plain,
        )


def _open(files: Files) -> None:
    path = files.new()
    progress(f"a file of {OPEN} entries")
    ask("fill", path=path, count=OPEN)
    opened = [ask("open", path=path) for _ in range(ROUNDS)]
    if any(one["entries"] != OPEN for one in opened):
        raise RuntimeError(f"{opened[0]['entries']} of {OPEN} entries were there")
    report("agree.open", [one["seconds"] for one in opened], "s", goal=OPEN_GOAL_S)
    report("agree.open_rss", [one["rss_mb"] for one in opened], "MB", goal=OPEN_GOAL_MB)


def _churn(files: Files) -> None:
    progress(f"1,000 keys overwritten {CHURN} times")
    done = ask("local", path=files.new(), writers=WRITERS, count=CHURN)
    report("agree.churn_size", [done["bytes"] / 1e3], "kB", goal=CHURN_GOAL_KB)
    report("agree.churn_time", [done["seconds"]], "s")


def main() -> None:
    """Measure all of it."""
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        files = Files(Path(folder))
        _local(files)
        _apply(files)
        _open(files)
        _churn(files)


if __name__ == "__main__":
    main()
