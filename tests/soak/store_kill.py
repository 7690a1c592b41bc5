"""`kill -9` of a store at random moments under load: `python -m tests.soak.store_kill [CYCLES]`.

After each kill the file is looked at (a copy, so that the next writer recovers from what the kill
left): whatever was acknowledged is there, every row reads back, no chain has forked.
"""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO

import msgspec

from crdt.entry import Record
from crdt.storage import Storage, StoreCorrupt

ROOT = Path(__file__).parents[2]
ACKNOWLEDGED_MAX = 400  # after so many of one writer it is killed at the latest
DELAY_MAX_S = 0.06  # or so long after it was started: while it opens the file, too
CYCLES = 1000


@dataclass
class Outcome:
    """What happened. All but the first two and the last are to be 0."""

    kills: int = 0
    acknowledged: int = 0
    lost: int = 0
    unreadable: int = 0
    damaged_rows: int = 0
    forks: int = 0
    seconds: float = 0.0
    latest: dict[str, int] = field(default_factory=dict[str, int])  # acknowledged, by key
    seen: dict[tuple[bytes, int], bytes] = field(default_factory=dict[tuple[bytes, int], bytes])

    def look(self, path: Path) -> None:
        """Hold a file to what was acknowledged."""
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            copy = Path(folder) / path.name
            for one in (path, path.with_name(f"{path.name}-wal")):
                if one.exists():
                    shutil.copy(one, folder)
            try:
                storage = Storage(copy)
                records, damaged, _ = storage.read(0, 1_000_000)
                storage.close()
            except StoreCorrupt:
                self.unreadable += 1
                return
        self.damaged_rows += len(damaged)
        held: dict[str, Record] = {}
        for record in records:
            self.forks += self.seen.setdefault((record.chain, record.seq), record.id) != record.id
            if record.key not in held or held[record.key].stamp < record.stamp:
                held[record.key] = record
        values = {key: msgspec.msgpack.decode(one.entry.value or b"") for key, one in held.items()}
        self.lost += sum(values.get(key, -1) < number for key, number in self.latest.items())


def kill_often(path: Path, cycles: int, seed: int) -> Outcome:
    """Start a writer and kill it, so many times."""
    outcome, rng, began = Outcome(), random.Random(seed), time.monotonic()
    command = [sys.executable, "-m", "tests.daemon.store_writer", str(path)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, cwd=ROOT, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        lines = _lines(process.stdout)
        for cycle in range(1, cycles + 1):
            process.stdin.write(f"{cycle}\n")
            process.stdin.flush()
            _run_one(lines, outcome, rng)
            outcome.look(path)
        process.stdin.close()
    outcome.seconds = round(time.monotonic() - began, 1)
    return outcome


def _run_one(lines: Iterator[tuple[str, int]], outcome: Outcome, rng: random.Random) -> None:
    """Follow one writer to its end: killed after a time, or after so many acknowledgements."""
    by_time = rng.random() < 0.5
    left = ACKNOWLEDGED_MAX if by_time else rng.randrange(1, ACKNOWLEDGED_MAX)
    pid, early = 0, list[tuple[str, int]]()
    for word, number in lines:
        if word == "dead":
            break
        if word == "pid":
            pid = number
            if by_time:
                time.sleep(rng.random() * DELAY_MAX_S)
                os.kill(pid, signal.SIGKILL)
                outcome.kills += 1
            continue
        early.append((word, number))
        if not by_time and pid and len(early) == left:
            os.kill(pid, signal.SIGKILL)
            outcome.kills += 1
    for key, number in early:
        outcome.acknowledged += 1
        outcome.latest[key] = max(number, outcome.latest.get(key, 0))


def _lines(stream: IO[str]) -> Iterator[tuple[str, int]]:
    for line in stream:
        word, _, number = line.strip().partition(" ")
        yield word, 0 if number == "-" else int(number)


def main() -> None:
    """Kill as often as was asked and print what came of it."""
    cycles = int(sys.argv[1]) if len(sys.argv) > 1 else CYCLES
    seed = random.randrange(10**6)
    with tempfile.TemporaryDirectory(prefix="shoal-kill-") as folder:
        outcome = kill_often(Path(folder) / "store.db", cycles, seed)
    told = {
        name: value for name, value in asdict(outcome).items() if name not in ("latest", "seen")
    }
    print(json.dumps({"seed": seed, **told}))


if __name__ == "__main__":
    main()
