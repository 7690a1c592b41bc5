"""`python -m tests.soak.answer_kills [TRIALS] [SEED]`: stages killed in the middle of answers.

An entry and four hosts of a tiny model, all real daemons. Prints each trial on standard error, and
one line of JSON at the end; the status is 1 if an answer did not finish or was another one.
"""

import json
import random
import sys
import tempfile
import time
from pathlib import Path

from benchmarks import answer_models
from benchmarks.answer_kill import HALVES, KINDS, TOKENS, Questions, freezes, kills
from benchmarks.answer_swarm import serving

TRIALS = 100
FREEZES = 10  # in a hundred trials


def main(count: int = TRIALS, seed: int = 0) -> int:
    """Kill as often, freeze a tenth as often."""
    began, model = time.monotonic(), answer_models.tiny()
    questions = Questions(model, TOKENS, random.Random(seed))
    with (
        tempfile.TemporaryDirectory(prefix="shoal-kills-") as folder,
        serving(Path(folder), model, HALVES) as nodes,
    ):
        killed = kills(nodes, questions, count, KINDS)
        frozen = freezes(nodes, questions, count * FREEZES // TRIALS)
    told = {
        "seed": seed,
        "trials": killed.count + frozen.count,
        "finished": killed.finished + frozen.finished,
        "same": killed.same + frozen.same,
        "not_hit": killed.missed + frozen.missed,
        "longest_pause_s": round(max([*killed.pauses_s, *frozen.pauses_s], default=0.0), 3),
        "seconds": round(time.monotonic() - began, 1),
    }
    print(json.dumps(told))
    return 0 if told["same"] == told["trials"] else 1


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:])))
