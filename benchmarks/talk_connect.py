"""From nothing to the first answered call of a peer never seen before, on loopback.

`python -m benchmarks.talk_connect` prints one JSON object.
"""

from benchmarks.report import QUICK, progress, report
from benchmarks.systems import Pair, shoal_pair

TRIES = 9 if QUICK else 25


def measure(shoal: Pair) -> None:
    """Connect to the server, with a new identity each time."""
    progress("connecting")
    times = list[float]()
    for number in range(TRIES + 1):
        answer = shoal.client.ask("first_call", address=shoal.server.hello["address"])
        if number:
            times.append(answer["ms"])
    report("talk.connect", times, "ms", goal=60.0)


def main() -> None:
    """Measure it."""
    with shoal_pair() as shoal:
        measure(shoal)


if __name__ == "__main__":
    main()
