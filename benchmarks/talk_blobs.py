"""Blobs from one and from three providers that upload 20 MB/s each, one of them corrupt in a third
figure.

`python -m benchmarks.talk_blobs` prints one JSON object a line. QUICK=1 fetches 40 MB once or twice
instead of 1 GB five times, which takes seven minutes: the providers are slow on purpose.
"""

import hashlib
import os
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

from benchmarks.orders import Child, Failed
from benchmarks.report import QUICK, ROUNDS, progress, report

MIB = 1024 * 1024
SIZE = 40 * MIB if QUICK else 1_000_000_000
UPLOAD_MB_S = 20.0
ONE_GOAL, THREE_GOAL = 0.95 * UPLOAD_MB_S, 0.9 * 3 * UPLOAD_MB_S
FETCH_S = 600.0
ONE_ROUNDS, THREE_ROUNDS, CORRUPT_ROUNDS = (1, 2, 1) if QUICK else (ROUNDS, ROUNDS, ROUNDS)


def _write(path: Path) -> str:
    """Write random bytes; returns their SHA-256."""
    digest = hashlib.sha256()
    with path.open("wb") as file:
        for _ in range(0, SIZE, MIB):
            part = os.urandom(min(MIB, SIZE - file.tell()))
            digest.update(part)
            file.write(part)
    return digest.hexdigest()


class Swarm:
    """Providers, each with the blob, and one that fetches from those it is connected to."""

    def __init__(self, stack: ExitStack, folder: Path, count: int) -> None:
        progress(f"a blob of {SIZE / 1e6:.0f} MB at {count} providers")
        self._sha256, self.cid = _write(folder / "blob"), ""
        self.providers = list[Child]()
        argv = [sys.executable, "-m", "benchmarks.blob_node"]
        self.fetcher = stack.enter_context(Child("fetcher", [*argv, str(folder / "fetcher"), "0"]))
        for number in range(count):
            place = str(folder / f"provider{number}")
            child = Child("provider", [*argv, place, str(UPLOAD_MB_S)])
            self.providers.append(stack.enter_context(child))
        for child in self.providers:
            self.cid = child.ask("add", path=str(folder / "blob"))["cid"]

    def fetch(self, providers: list[Child], rounds: int) -> tuple[list[float], dict[str, int]]:
        """Fetch so many times; the rates, and what the fetcher counted in all. Raises Failed."""
        rates, counts = list[float](), {"wrong": 0, "dropped": 0}
        for child in providers:
            self.fetcher.ask("connect", address=child.hello["address"])
        for number in range(rounds):
            answer = self.fetcher.ask(
                "fetch",
                cid=self.cid,
                providers=[child.hello["peer"] for child in providers],
                sha256=self._sha256,
                timeout_s=FETCH_S,
            )
            progress(f"{len(providers)} providers, {number + 1} of {rounds}: {answer}")
            if not answer["is_right"]:
                raise Failed("the file is not what was added")
            rates.append(answer["mb_s"])
            counts = {name: counts[name] + answer[name] for name in counts}
        return rates, counts


def _measure(folder: Path) -> None:
    with ExitStack() as stack:
        swarm = Swarm(stack, folder, 4)
        *good, bad = swarm.providers
        rates, _ = swarm.fetch(good[:1], ONE_ROUNDS)
        report("talk.blob_1_provider", rates, "MB/s", better="higher", goal=ONE_GOAL)
        rates, _ = swarm.fetch(good, THREE_ROUNDS)
        report("talk.blob_3_providers", rates, "MB/s", better="higher", goal=THREE_GOAL)
        bad.ask("lie")
        rates, counts = swarm.fetch(swarm.providers, CORRUPT_ROUNDS)
        report("talk.blob_corrupt_rate", rates, "MB/s", better="higher")
        found = 100 * min(counts["wrong"], counts["dropped"], CORRUPT_ROUNDS) / CORRUPT_ROUNDS
        report("talk.blob_corrupt_found", [found], "% of fetches", better="higher", goal=100)


def main() -> None:
    """Measure all of it; the disk needs five times the blob's size."""
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        try:
            _measure(Path(folder))
        except Failed as error:
            why = str(error)
            report("talk.blob_failed", [], "MB/s", better="higher", why=why)


if __name__ == "__main__":
    main()
