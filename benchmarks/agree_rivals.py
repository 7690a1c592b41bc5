"""The store beside Loro and Yrs, which are libraries: they sign nothing, check nothing that comes,
and have nothing on a disk. What that costs us is the ratio.

`python -m benchmarks.agree_rivals` prints one JSON object a line.
"""

import tempfile
from contextlib import ExitStack
from pathlib import Path

from benchmarks.agree_writes import CHURN_GOAL_KB, WRITERS, Files, ask
from benchmarks.orders import Answer, Child, Failed
from benchmarks.report import QUICK, progress, report
from benchmarks.systems import Missing, rival_python

HOME = Path(__file__).parents[1] / ".rivals" / "documents"
REQUIREMENTS = ("loro==1.17.1", "pycrdt==0.14.13")
RIVALS = {"loro": "Loro", "pycrdt": "Yrs (pycrdt)"}
COUNT = 1_000 if QUICK else 10_000
CHURN, KEYS = (10_000, 1_000) if QUICK else (100_000, 1_000)


def _beside(name: str, unit: str, better: str, ours: float, theirs: dict[str, float]) -> None:
    for rival, value in theirs.items():
        against = f"{RIVALS[rival]}, unsigned"
        report(
            *(f"agree.{name}_beside_{rival}", [ours], unit),
            better=better,
            against=against,
            against_values=[value],
        )


def _measure(rivals: Child, files: Files) -> None:
    for name in ("replicate", "cold"):
        progress(f"beside documents: {name}")
        more = {"writers": WRITERS} if name == "replicate" else {}
        ours = ask(name, folder=str(Path(files.new()).parent), count=COUNT, **more)
        theirs: dict[str, Answer] = {
            rival: rivals.ask(f"{rival}_{name}", count=COUNT) for rival in RIVALS
        }
        for field, unit, better in (
            ("per_s", "entries/s", "higher"),
            ("bytes", "B/entry", "lower"),
        ):
            values = {rival: one[field] for rival, one in theirs.items()}
            _beside(f"{name}_{field}", unit, better, ours[field], values)
    sizes = {rival: rivals.ask(f"{rival}_churn", count=CHURN, keys=KEYS) for rival in RIVALS}
    for rival, one in sizes.items():
        report(f"agree.churn_size_of_{rival}", [one["bytes"] / 1e3], "kB", goal=CHURN_GOAL_KB)


def main() -> None:
    """Measure both, if they can be had here."""
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-"))
        try:
            argv = [rival_python(HOME, *REQUIREMENTS), "-m", "benchmarks.rivals.documents"]
            rivals = stack.enter_context(Child("documents", argv))
            _measure(rivals, Files(Path(folder)))
        except (Missing, Failed) as error:
            report("agree.beside_documents", [], "", why=str(error))


if __name__ == "__main__":
    main()
