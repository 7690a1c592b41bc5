"""One JSON object a line on standard output, and nothing else: how every benchmark reports."""

import json
import statistics
import sys
from collections.abc import Sequence


def report(
    bench: str,
    values: Sequence[float],
    unit: str,
    *,
    better: str = "lower",
    goal: float | None = None,
    against: str = "",
    against_values: Sequence[float] = (),
) -> None:
    """Print the median of `values`, beside the median of a rival measured in the same run."""
    value = statistics.median(values)
    row: dict[str, object] = {"bench": bench, "value": round(value, 4), "unit": unit}
    row |= {"better": better, "samples": len(values)}
    if goal is not None:
        row |= {"goal": goal, "ok": value <= goal if better == "lower" else value >= goal}
    if against_values:
        rival = statistics.median(against_values)
        row |= {"against": against, "against_value": round(rival, 4)}
        row |= {"ratio": round(value / rival, 4)}
    sys.stdout.write(json.dumps(row) + "\n")
    sys.stdout.flush()
