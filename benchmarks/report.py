"""One JSON object a line on standard output, and nothing else: how every benchmark reports."""

import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence

QUICK = os.environ.get("QUICK") == "1"  # all of `make bench-talk` within 50 s
ROUNDS = 5  # of each figure: medians of at least so many
_BEGAN = time.monotonic()


def report(
    bench: str,
    values: Sequence[float],
    unit: str,
    *,
    better: str = "lower",
    goal: float | None = None,
    against: str = "",
    against_values: Sequence[float] = (),
    goal_ratio: float | None = None,
    why: str = "",
) -> None:
    """Print the median of `values`, beside the median of a rival measured in the same run.

    goal: of the figure itself. goal_ratio: of the figure as a multiple of the rival's.
    why: says why there is no figure (`values` empty) or no rival's (`against_values` empty).
    """
    row: dict[str, object] = {"bench": bench, "value": None, "unit": unit, "better": better}
    if values:
        value = statistics.median(values)
        row |= {"value": round(value, 4), "samples": len(values)}
        if goal is not None:
            row |= {"goal": goal, "ok": _reaches(value, goal, better)}
        if against_values:
            rival = statistics.median(against_values)
            row |= {"against": against, "against_value": round(rival, 4)}
            ratio = value / rival if rival else None
            row |= {"ratio": None if ratio is None else round(ratio, 4)}
            if goal_ratio is not None and ratio is not None:
                row |= {"goal_ratio": goal_ratio, "ok": _reaches(ratio, goal_ratio, better)}
        elif against:
            row |= {"against": None, "rival": against}
    if goal is not None:
        row |= {"goal": goal}
    if goal_ratio is not None:
        row |= {"goal_ratio": goal_ratio}
    if why:
        row |= {"why": why}
    sys.stdout.write(json.dumps(row) + "\n")
    sys.stdout.flush()


def progress(text: str) -> None:
    """Tell a person on standard error what goes on."""
    sys.stderr.write(f"[{time.monotonic() - _BEGAN:6.1f} s] {text}\n")
    sys.stderr.flush()


def percentile(values: Sequence[float], share: float) -> float:
    """Return the value that a share of all values do not exceed: 0.99 for p99."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


def _reaches(value: float, goal: float, better: str) -> bool:
    return value <= goal if better == "lower" else value >= goal


def run_parts(bench: str, parts: Mapping[str, Callable[[], object]], wanted: Sequence[str]) -> None:
    """Run all parts, or those named, and exit; one that fails says why in a line of its own."""
    failed = 0
    for name, part in parts.items():
        if wanted and name not in wanted:
            continue
        progress(f"== {name}")
        try:
            part()
        except Exception as error:  # a boundary: the other figures are not its fault
            failed += 1
            why = f"{type(error).__name__}: {error}"
            report(f"{bench}.{name.replace(' ', '_')}", [], "", why=why)
    sys.exit(1 if failed else 0)
