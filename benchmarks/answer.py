"""Every figure of served models, one JSON object a line on standard output and nothing else.

`python -m benchmarks.answer [PART ...]`, or `make bench-answer`. Each part runs by itself too, as
`python -m benchmarks.answer_kill`. QUICK=1 takes some minutes, the full form three quarters of an
hour: a hundred kills, each with a stage that comes back.
"""

import sys

from benchmarks import (
    answer_batch,
    answer_cheats,
    answer_codec,
    answer_decode,
    answer_exact,
    answer_kill,
    answer_law,
    answer_memory,
)
from benchmarks.report import run_parts

PARTS = {
    "decode": answer_decode.main,
    "law": answer_law.main,
    "batch": answer_batch.main,
    "kill": answer_kill.main,
    "codec": answer_codec.main,
    "exact": answer_exact.main,
    "cheats": answer_cheats.main,
    "memory": answer_memory.main,
}


if __name__ == "__main__":
    run_parts("answer", PARTS, sys.argv[1:])
