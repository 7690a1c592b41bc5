"""The commands about training: start a run, and list runs. One run's own commands: run.py."""

from pathlib import Path

import click

from node.cli import run
from node.cli.context import Context, echo_json, echo_table, json_option, plain
from node.cli.live import follow
from node.cli.run_source import read_source
from node.cli.run_text import RUN_HEADS, run_row
from shoal.runs import StartRun, list_runs, start_run

WIRES = ("auto", "float32", "bfloat16", "float16", "int8", "int4", "topk", "fedzip")
_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.command()
@click.argument("source", metavar="FILE|SCRIPT", type=_FILE)
@click.option("--name", metavar="NAME", help="Name of the run (default: what the file says).")
@click.option(
    "--strategy",
    metavar="NAME",
    help="How to learn together; sets run.strategy.",
)
@click.option("--wire", type=click.Choice(WIRES), help="Codec of the averages; sets run.wire.")
@click.option("--rounds", type=click.IntRange(min=1), help="When it ends; sets run.rounds.")
@click.option(
    "--set", "changes", metavar="KEY=VALUE", multiple=True, help="Change a value: run.rounds=20."
)
@click.option("--detach", is_flag=True, help="Return at once; the run goes on.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document per line.")
@click.pass_obj
def train(
    context: Context,
    source: Path,
    name: str | None,
    strategy: str | None,
    wire: str | None,
    rounds: int | None,
    changes: tuple[str, ...],
    detach: bool,
    as_json: bool,
) -> None:
    """Train what FILE (TOML) or SCRIPT describes, with all nodes that train a run of this name.

    The script runs as a child of the daemon. Ctrl-C ends the display only: the run goes on, and
    `shoal run stop` stops this node's part, `shoal run resume` goes on from where it was.

    \b
    Example:
      shoal train configs/runs/shakespeare.toml --set run.rounds=20
      shoal train mine.py --name mine --strategy diloco --set strategy.every=50 --wire int4
    """
    found = read_source(source, changes, strategy)
    given = {"wire": wire, "rounds": rounds}
    found.config["run"].update({key: value for key, value in given.items() if value is not None})
    client = context.client()
    started = start_run(client, StartRun(name or found.name, str(found.script), found.config))
    if as_json:
        echo_json(started)
    else:
        click.echo(f"run {started.name}: log in {started.directory}/train.log", err=True)
        how = "" if detach else "Ctrl-C leaves it running; "
        click.echo(f"{how}`shoal run stop {started.name}` stops it", err=True)
    if not detach:
        follow(client, started.name, as_json=as_json)


@click.command()
@json_option
@click.pass_obj
def runs(context: Context, as_json: bool) -> None:
    """List training runs: those of this node, and those that other members train."""
    found = list_runs(context.client())
    if as_json:
        echo_json(found)
        return
    echo_table(RUN_HEADS, [run_row(each) for each in found])
    for each in found:
        if each.error:
            click.echo(f"{plain(each.name)}: {plain(each.error)}", err=True)
    if not found:
        click.echo("no runs yet; start one with `shoal train FILE.toml`", err=True)


COMMANDS: dict[str, click.Command] = {"train": train, "runs": runs, "run": run.run}
