"""Writes docs/results.md from the lines that benchmarks print.

`make bench | python -m benchmarks.results > docs/results.md`, or `make results`.
"""

import json
import os
import platform
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from benchmarks.notes import NOTES

METHOD = "\n## How it was measured\n\n"
HEAD = """# Results

What the benchmarks measured, made from their output by `make results`. Everything ran on one
machine, ours and theirs in turn; a figure is a median. Ratios carry over to other machines,
absolute figures do not. A goal, of a figure or of its ratio to a rival's, is met (yes) or not (no).

Machine: {machine}.

| figure | Shoal | unit | goal | beside it | theirs | ratio | met |
|---|---|---|---|---|---|---|---|
"""


def table(lines: Iterable[str]) -> str:
    """Return the page."""
    found = [json.loads(line) for line in lines if line.strip()]
    names = [str(one["bench"]) for one in found]
    notes = [text for start, text in NOTES.items() if any(n.startswith(start) for n in names)]
    rows = "".join(map(_row, found))
    return HEAD.format(machine=_machine()) + rows + (METHOD + "".join(notes) if notes else "")


def _row(one: dict[str, Any]) -> str:
    goal = _number(one.get("goal"))
    if one.get("goal_ratio") is not None:
        goal = f"{_number(one['goal_ratio'])}x"
    if goal:
        goal = ("\u2264 " if one["better"] == "lower" else "\u2265 ") + goal
    value = _number(one["value"]) or "not measured"
    beside = one.get("against") or (f"{one['rival']}: none" if "rival" in one else "")
    met = {True: "yes", False: "no"}.get(one.get("ok", ""), "")
    cells = [one["bench"], value, one["unit"], goal, beside]
    cells += [_number(one.get("against_value")), _number(one.get("ratio")), met]
    why = f" ({one['why']})" if one.get("why") else ""
    cells[1] += why
    return "| " + " | ".join(cell.replace("|", "/").replace("\n", " ") for cell in cells) + " |\n"


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,.0f}" if abs(value) >= 100 or value == int(value) else f"{value:.4g}"


def _machine() -> str:
    """Name the processor, its cores, the memory, and what runs on it."""
    model = platform.machine()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    release = f"{platform.system()} {platform.release().split('-')[0]}"
    return (
        f"{os.cpu_count()} cores ({model}), {memory:.0f} GiB, {release}, "
        f"Python {platform.python_version()}"
    )


if __name__ == "__main__":
    sys.stdout.write(table(sys.stdin))
