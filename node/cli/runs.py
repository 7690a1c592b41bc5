"""The commands about training: start and follow a run, list runs, draw their curves."""

import difflib
import re
import tomllib
from pathlib import Path
from typing import Any

import click
import msgspec

from node.cli.context import Context, echo_json, echo_table, json_option, on_terminal
from shoal.errors import ClientError
from shoal.runs import (
    Metric,
    Run,
    StartRun,
    follow_run,
    list_runs,
    metrics_of,
    start_run,
    stop_run,
)

FILES_MAX = 64  # curves in one picture; more cannot be told apart
CURVE_ROWS = 8  # of text: the curve leaves room for what was said before it


class BadRunFile(ClientError):
    """The run file or a change to it makes no sense."""

    code = "usage"
    exit_code = 2


@click.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--name", metavar="NAME", help="Name of the run (default: what the file says).")
@click.option(
    "--set", "changes", metavar="KEY=VALUE", multiple=True, help="Change a value: run.rounds=20."
)
@click.option("--detach", is_flag=True, help="Return at once; the run goes on.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document per line.")
@click.pass_obj
def train(
    context: Context,
    file: Path,
    name: str | None,
    changes: tuple[str, ...],
    detach: bool,
    as_json: bool,
) -> None:
    """Train what FILE describes, together with all nodes that train a run of this name.

    The script runs as a child of the daemon. Ctrl-C ends the display only: the run goes on.
    """
    config = read_run_file(file, changes)
    run = config["run"]
    script = (file.parent / str(run.get("script", file.with_suffix(".py").name))).resolve()
    request = StartRun(name or str(run.get("name", file.stem)), str(script), config)
    client = context.client()
    started = start_run(client, request)
    if as_json:
        echo_json(started)
    else:
        click.echo(f"run {started.name}: log in {started.directory}/train.log", err=True)
        how = "" if detach else "Ctrl-C leaves it running; "
        click.echo(f"{how}`shoal runs --stop {started.name}` stops it", err=True)
    if detach:
        return
    try:
        _follow(context, started.name, as_json=as_json)
    except KeyboardInterrupt:
        click.echo(f"\nrun {started.name} goes on; `shoal runs` shows it", err=True)


def _follow(context: Context, name: str, *, as_json: bool) -> None:
    last: Run | None = None
    for item in follow_run(context.client(), name):
        if isinstance(item, Run):
            last = item
        if as_json:
            echo_json(item)
        elif isinstance(item, Metric):
            click.echo(metric_line(item))
    if last is None or last.state == "failed":
        error = last.error if last else "the daemon stopped"
        raise ClientError(f"run {name} failed: {error}", hint=f"read the log of run {name}")
    if not as_json:
        click.echo(f"run {name} {last.state}: parameters and momentum {last.root[:16]}…")


def metric_line(metric: Metric) -> str:
    """Return one line of progress."""
    parts = [f"round {metric.round}/{metric.rounds}", f"step {metric.step}"]
    if metric.loss is not None:
        parts.append(f"loss {metric.loss:.3f}")
    if metric.val_loss is not None:
        parts.append(f"val {metric.val_loss:.3f}")
    if metric.peers:
        parts.append(f"{metric.peers} peers")
        parts.append(f"{_size(metric.bytes_out)} out, {_size(metric.bytes_in)} in")
        parts.append(f"{metric.seconds:.1f} s")
    if metric.eta_s is not None:
        parts.append(f"{_duration(metric.eta_s)} left")
    if metric.note:
        parts.append(metric.note)
    return "  ".join(parts)


@click.command()
@click.option("--stop", metavar="NAME", help="Stop this node's part in a run.")
@json_option
@click.pass_obj
def runs(context: Context, stop: str | None, as_json: bool) -> None:
    """List training runs: those of this node, and those that other members train."""
    client = context.client()
    found = [stop_run(client, stop)] if stop is not None else list_runs(client)
    if as_json:
        echo_json(found)
        return
    echo_table(
        ("run", "state", "round", "step", "loss", "val", "members", "root"),
        [
            (
                run.name,
                run.state,
                f"{run.round}/{run.rounds}",
                str(run.step),
                _loss(run.loss),
                _loss(run.val_loss),
                str(len(run.members)),
                run.root[:12],
            )
            for run in found
        ],
    )
    for run in found:
        if run.error:
            click.echo(f"{run.name}: {run.error}", err=True)
    if not found:
        click.echo("no runs yet; start one with `shoal train FILE.toml`", err=True)


@click.command()
@click.argument("sources", metavar="RUN|FILE...", nargs=-1, required=True)
@click.option("--out", metavar="FILE.png", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--terminal", is_flag=True, help="Draw in the terminal too.")
@click.pass_obj
def plot(context: Context, sources: tuple[str, ...], out: Path | None, terminal: bool) -> None:
    """Draw the loss curves of a run, or of several metrics.jsonl files of several nodes."""
    curves = {name: rows for name, rows in _read_sources(context, sources) if rows}
    if not curves:
        raise ClientError(f"nothing is recorded yet for {', '.join(sources)}")
    if terminal or (out is None and on_terminal()):
        _draw_in_terminal(curves)
    if out is not None or not terminal:
        path = out or Path(f"{Path(sources[0]).stem}.png")
        _draw_png(curves, path)
        click.echo(str(path))


def _read_sources(context: Context, sources: tuple[str, ...]) -> list[tuple[str, list[Metric]]]:
    found: list[tuple[str, list[Metric]]] = []
    for source in sources[:FILES_MAX]:
        path = Path(source)
        if path.suffix != ".jsonl" or not path.is_file():
            found.append((source, metrics_of(context.client(), source)))
            continue
        rows = [msgspec.json.decode(line, type=Metric) for line in path.read_bytes().splitlines()]
        label = f"…{rows[0].member[-8:]}" if rows else source
        found.append((label, rows))
    return found


def _draw_png(curves: dict[str, list[Metric]], path: Path) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(9, 5), dpi=120)
    for label, rows in curves.items():
        trained = [(row.step, row.loss) for row in rows if row.loss is not None]
        checked = [(row.step, row.val_loss) for row in rows if row.val_loss is not None]
        (line,) = axes.plot(*zip(*trained, strict=True), label=label) if trained else (None,)
        if checked:
            colour = line.get_color() if line is not None else None
            mark = f"{label} (validation)"
            axes.plot(*zip(*checked, strict=True), "o--", color=colour, label=mark)
    axes.set_xlabel("step")
    axes.set_ylabel("loss (nats a token)")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def _draw_in_terminal(curves: dict[str, list[Metric]]) -> None:
    import uniplot

    steps: list[list[int]] = []
    losses: list[list[float]] = []
    for rows in curves.values():
        points = [(row.step, row.val_loss) for row in rows if row.val_loss is not None]
        points = points or [(row.step, row.loss) for row in rows if row.loss is not None]
        steps.append([step for step, _ in points])
        losses.append([loss for _, loss in points])
    uniplot.plot(
        xs=steps,
        ys=losses,
        lines=True,
        legend_labels=list(curves),
        title="held-out loss by step",
        width=70,
        height=CURVE_ROWS,
    )


def read_run_file(path: Path, changes: tuple[str, ...] = ()) -> dict[str, Any]:
    """Read a run file and apply `section.key=value` changes. Raises BadRunFile."""
    try:
        config = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BadRunFile(f"{path}: {error}") from error
    if not isinstance(config.get("run"), dict):
        raise BadRunFile(f"{path} has no section [run]", hint="see configs/runs/shakespeare.toml")
    for change in changes:
        _apply(config, change)
    return config


def _apply(config: dict[str, Any], change: str) -> None:
    key, equals, text = change.partition("=")
    section, _, name = key.strip().partition(".")
    tables: dict[str, dict[str, Any]] = {k: v for k, v in config.items() if isinstance(v, dict)}
    known = [f"{table}.{key}" for table in tables for key in tables[table]]
    if not equals or not name:
        raise BadRunFile(f"--set {change}: not SECTION.KEY=VALUE", hint="--set run.rounds=20")
    if key.strip() not in known:
        nearest = difflib.get_close_matches(key.strip(), known, n=1)
        hint = f"did you mean {nearest[0]}?" if nearest else f"known: {', '.join(known)}"
        raise BadRunFile(f"--set {change}: the file has no {key.strip()}", hint=hint)
    old = config[section][name]
    config[section][name] = _value(text.strip(), old, change)


def _value(text: str, old: object, change: str) -> object:
    if isinstance(old, str) and not re.match(r"[\"']", text):
        return text
    try:
        new = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError as error:
        raise BadRunFile(f"--set {change}: {error}") from error
    if isinstance(old, float) and isinstance(new, int):
        return float(new)
    if type(new) is not type(old):
        raise BadRunFile(f"--set {change}: a {type(old).__name__} is expected, like {old!r}")
    return new


def _loss(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _size(size_bytes: float) -> str:
    for unit in ("B", "kB", "MB"):
        if size_bytes < 1000:
            return f"{size_bytes:.3g} {unit}"
        size_bytes /= 1000
    return f"{size_bytes:.3g} GB"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


COMMANDS: dict[str, click.Command] = {"train": train, "runs": runs, "plot": plot}
