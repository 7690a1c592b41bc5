"""Runs a scenario of configs/sim/ and prints what came of it.

`python -m tests.sim.run SCENARIO [--seed N] [--json] [KEY=VALUE …]`, or `make sim SCENARIO=…`.
The same seed replays exactly: trial n of a run has the seed `seed + n`. KEY=VALUE, such as
swarm.nodes=1000, is another value for this run. Exit status 1: a goal is missed; 2: usage.
"""

import argparse
import json
import sys
import time
from typing import Any

from msgspec import structs

from tests.sim.kad_churn import ChurnPlay
from tests.sim.kad_play import Outcome, Play
from tests.sim.scenario import Scenario, load, with_changes
from wire.errors import UsageError

FAILURES_SHOWN = 5


def play(scenario: Scenario) -> Outcome:
    """Play all trials of a scenario."""
    outcome = Outcome()
    for trial in range(scenario.work.trials):
        kind = Play if scenario.churn is None else ChurnPlay
        kind(scenario, scenario.seed + trial, outcome).run()
    return outcome


def rows(scenario: Scenario, figures: dict[str, float]) -> list[dict[str, Any]]:
    """Return one row of each figure, with its goal if it has one."""
    found: list[dict[str, Any]] = []
    for name in sorted({*figures, *scenario.goals}):
        value, goal = figures.get(name), scenario.goals.get(name)
        row: dict[str, Any] = {"figure": name, "value": None if value is None else round(value, 4)}
        if goal is not None:
            limits = {"at_least": goal.at_least, "at_most": goal.at_most}
            row |= {key: limit for key, limit in limits.items() if limit is not None}
            row["ok"] = value is not None and goal.is_met(value)
        found.append(row)
    return found


def _line(row: dict[str, Any]) -> str:
    goal = f">= {row['at_least']:g}" if "at_least" in row else ""
    goal += f"<= {row['at_most']:g}" if "at_most" in row else ""
    met = {True: "met", False: "MISSED", None: ""}[row.get("ok")]
    value = "-" if row["value"] is None else f"{row['value']:,.3f}"
    return f"{row['figure']:<26} {value:>12}  {goal:<10} {met}".rstrip()


def main(argv: list[str]) -> int:
    """Run one scenario."""
    parser = argparse.ArgumentParser(prog="python -m tests.sim.run", description=__doc__)
    parser.add_argument("scenario", nargs="?", default="")
    parser.add_argument("--seed", type=int)
    parser.add_argument("--json", action="store_true", dest="as_json")
    parser.add_argument("changes", nargs="*", metavar="KEY=VALUE")
    args = parser.parse_intermixed_args(argv)
    try:
        scenario = with_changes(load(args.scenario), args.changes)
    except UsageError as error:
        hint = f" (did you mean {error.hint}?)" if error.hint else ""
        sys.stderr.write(f"error: {error}{hint}\n")
        return error.exit_code
    if args.seed is not None:
        scenario = structs.replace(scenario, seed=args.seed)
    began = time.perf_counter()
    outcome = play(scenario)
    wall_s = time.perf_counter() - began
    figures = outcome.summary() | {"wall_s": wall_s, "events": float(outcome.events)}
    table = rows(scenario, figures)
    if args.as_json:
        result = {"scenario": args.scenario, "seed": scenario.seed, "figures": table}
        sys.stdout.write(json.dumps(result | {"failures": outcome.failures}) + "\n")
    else:
        sys.stdout.write(f"{args.scenario}, seed {scenario.seed}: {scenario.about}\n")
        sys.stdout.write("".join(_line(row) + "\n" for row in table))
        for failure in outcome.failures[:FAILURES_SHOWN]:
            sys.stdout.write(f"failed: {failure}\n")
    return 0 if all(row.get("ok", True) for row in table) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
