"""`kill -9` of a process that writes: whatever it acknowledged is there when it starts again."""

import os
import random
import signal
import subprocess
import sys
from pathlib import Path

from crdt.storage import Storage

CYCLES = 30
ROOT = Path(__file__).parents[2]


def test_every_acknowledged_write_survives_kill_nine(tmp_path: Path) -> None:
    path, rng = tmp_path / "store.db", random.Random(7)
    acknowledged: set[str] = set()
    with subprocess.Popen(
        [sys.executable, "-m", "tests.daemon.store_writer", str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=ROOT,
        text=True,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for cycle in range(CYCLES):
            process.stdin.write(f"{cycle}\n")
            process.stdin.flush()
            pid, left = 0, rng.randrange(1, 60)  # killed after so many acknowledgements
            for line in process.stdout:
                word = line.strip()
                if word == "dead":
                    break
                if word.startswith("pid "):
                    pid = int(word[4:])
                    continue
                acknowledged.add(word)
                left -= 1
                if left <= 0 and pid:
                    os.kill(pid, signal.SIGKILL)
                    left = 1_000_000
            storage = Storage(path)
            kept = {record.entry.key for record in storage.load()}
            storage.close()
            assert acknowledged - kept == set(), f"cycle {cycle}"
        process.stdin.close()
    assert len(acknowledged) > CYCLES
