"""Curves of runs: as a PNG (matplotlib), or as text in the terminal (uniplot).

A curve is the metrics of one run at one node: of this daemon's, or a metrics.jsonl of any node.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

import click
import msgspec

from node.cli.context import short
from shoal.errors import ClientError
from shoal.runs import Metric

CURVES_MAX = 64  # in one picture; more cannot be told apart
CURVE_ROWS = 12  # of text: the curve leaves room for what was said before it
CURVE_COLUMNS = 70
SMOOTH_FROM = 60  # points: fewer are drawn as they are
SMOOTH_INTO = 30  # so many stretches have a mean of their own
MARGIN = 0.03  # of the range, above and below: the extremes do not hide in the frame
INK_MAX = 10  # colours of matplotlib's cycle: beyond it a curve's style changes too
_STYLES = ("-", "--", "-.", ":")
_UNPRINTED = re.compile(r"[^\x20-\x7e\u00a0-\uffff]|\$")  # `$` would begin a formula in matplotlib


@dataclass(frozen=True)
class Axis:
    """What a curve is drawn over: its label, and the value of each metric."""

    label: str
    values: Callable[[list[Metric]], list[float]]


def _minutes(rows: list[Metric]) -> list[float]:
    return [(row.time_ms - rows[0].time_ms) / 60_000 for row in rows]


AXES: Mapping[str, Axis] = {
    "step": Axis("step", lambda rows: [float(row.step) for row in rows]),
    "round": Axis("round", lambda rows: [float(row.round) for row in rows]),
    "time": Axis("minutes", _minutes),
    "bytes": Axis("MB sent", lambda rows: [row.wire_out / 1e6 for row in rows]),
}


class NoPlot(ClientError):
    """The library that draws is not installed."""

    code = "no_plot"


def read_file(path: Path) -> list[Metric]:
    """Read a metrics.jsonl; a last line cut off by a crash is left out. Raises ClientError."""
    rows: list[Metric] = []
    lines = path.read_bytes().splitlines()
    for number, line in enumerate(lines, 1):
        try:
            rows.append(msgspec.json.decode(line, type=Metric))
        except msgspec.DecodeError as error:
            if number < len(lines):
                raise ClientError(f"{path}, line {number} is no metric: {error}") from error
    return rows


def since_start(rows: list[Metric]) -> list[Metric]:
    """Leave out what an earlier run of the same name left in the file: it began with round 0."""
    starts = [number for number, row in enumerate(rows) if row.round == 0]
    return rows[starts[-1] :] if starts else rows


def label_of(rows: list[Metric], source: str) -> str:
    """Say which run at which member a curve is of."""
    return f"{rows[0].run} {short(rows[0].member)}" if rows else source


def together(found: list[tuple[str, list[Metric]]]) -> dict[str, list[Metric]]:
    """Give every curve that has points a label of its own. Raises ClientError if none has."""
    if len(found) > CURVES_MAX:
        raise ClientError(f"{len(found)} curves in one picture: at most {CURVES_MAX}")
    curves: dict[str, list[Metric]] = {}
    for source, every in found:
        rows = since_start(every)
        label = label_of(rows, source)
        if label in curves:
            label = f"{label} ({source})"
        if any(row.loss is not None or row.val_loss is not None for row in rows):
            curves[label] = rows
    if not curves:
        sources = ", ".join(source for source, _ in found)
        raise ClientError(
            f"nothing is recorded yet for {sources}", hint="the first round writes the first point"
        )
    return curves


def points(rows: list[Metric], axis: Axis, name: str) -> tuple[list[float], list[float]]:
    """Return where a curve goes: `name` is loss or val_loss; gaps are left out."""
    every = zip(axis.values(rows), (getattr(row, name) for row in rows), strict=True)
    kept = [(x, y) for x, y in every if y is not None]
    return [x for x, _ in kept], [y for _, y in kept]


def smoothed(ys: list[float]) -> list[float]:
    """Return the mean around each of many values; the first and the last stay as they are."""
    if len(ys) < SMOOTH_FROM:
        return ys
    reach, last, sums = len(ys) // SMOOTH_INTO // 2, len(ys) - 1, [0.0, *accumulate(ys)]
    near = [min(reach, number, last - number) for number in range(len(ys))]
    return [(sums[i + r + 1] - sums[i - r]) / (2 * r + 1) for i, r in enumerate(near)]


def draw_png(curves: Mapping[str, list[Metric]], path: Path, axis: Axis) -> None:
    """Write the picture: training loss as a line, held-out loss as dots in the same colour."""
    try:
        import matplotlib as mpl
    except ImportError as error:
        raise NoPlot("matplotlib is not installed", hint="pip install 'shoal[plot]'") from error
    mpl.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(9, 5), dpi=120)
    for number, (label, rows) in enumerate(curves.items()):
        ink = f"C{number % INK_MAX}"
        style = _STYLES[number // INK_MAX % len(_STYLES)]
        shown = _UNPRINTED.sub("?", label)
        trained, checked = points(rows, axis, "loss"), points(rows, axis, "val_loss")
        if trained[0]:
            axes.plot(trained[0], smoothed(trained[1]), style, label=shown, color=ink)
        if len(trained[0]) >= SMOOTH_FROM:
            axes.plot(*trained, color=ink, alpha=0.25, linewidth=0.7)
        if checked[0]:
            mark = f"o{style}"
            axes.plot(*checked, mark, alpha=0.7, label=f"{shown}, held out", color=ink)
    axes.set_xlabel(axis.label)
    axes.set_ylabel("loss (nats a token)")
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    pyplot.close(figure)


def draw_text(curves: Mapping[str, list[Metric]], axis: Axis) -> None:
    """Print the curves: the held-out loss where there is one, else the training loss."""
    try:
        import uniplot
    except ImportError as error:
        raise NoPlot("uniplot is not installed", hint="pip install 'shoal[plot]'") from error
    lines: list[tuple[list[float], list[float]]] = []
    for rows in curves.values():
        checked = points(rows, axis, "val_loss")
        lines.append(checked if checked[0] else points(rows, axis, "loss"))
    low = min(min(ys) for _, ys in lines)
    high = max(max(ys) for _, ys in lines)
    margin = (high - low) * MARGIN or 0.5
    low, high = low - margin, high + margin
    drawn: str = uniplot.plot_to_string(
        xs=[xs for xs, _ in lines],
        ys=[ys for _, ys in lines],
        lines=True,
        legend_labels=[_UNPRINTED.sub("?", label) for label in curves],
        title=f"held-out loss by {axis.label}",
        width=CURVE_COLUMNS,
        height=CURVE_ROWS,
        y_min=low,
        y_max=high,
        y_gridlines=[],
        y_labels=False,
    )
    for line in with_labels(drawn.splitlines(), low, high):
        click.echo(line)


def with_labels(drawn: list[str], low: float, high: float) -> list[str]:
    """Write values beside the top, middle and bottom row (uniplot's own are whole numbers)."""
    first = next((number for number, line in enumerate(drawn) if "┌" in line), 0) + 1
    labelled = list(drawn)
    for row in (0, CURVE_ROWS // 2, CURVE_ROWS - 1):
        value = high - (row + 0.5) / CURVE_ROWS * (high - low)
        if first + row < len(labelled):
            labelled[first + row] += f" {value:.3f}"
    return labelled
