"""The group `shoal run`: everything about one training run."""

import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

import click
import msgspec

from node.cli.context import (
    Context,
    echo_json,
    echo_table,
    json_option,
    on_terminal,
    plain,
)
from node.cli.curves import AXES, draw_png, draw_text, read_file, together
from node.cli.library import DTYPES
from node.cli.library import follow as follow_library
from node.cli.live import follow as follow_it
from node.cli.run_text import PEER_HEADS, latest, peer_rows, run_lines
from shoal.client import Client
from shoal.errors import ApiError, ClientError
from shoal.library import ServeRun, serve_run
from shoal.runs import (
    CertificateView,
    Contribution,
    Metric,
    Run,
    certificates_of,
    contributions_of,
    export_run,
    get_run,
    metrics_of,
    resume_run,
    stop_run,
)

LOG_POLL_S = 0.2  # seconds between two looks at a log that may grow
LOG_READ_BYTES = 256 * 1024  # from the end of the log: far more than anybody asks lines of
ACTIVE = ("starting", "training")


class RunDetail(msgspec.Struct, frozen=True):
    """What `run show --json` prints."""

    run: Run
    last: CertificateView | None
    contributions: list[Contribution]


class LogText(msgspec.Struct, frozen=True):
    """What `run log --json` prints: a line of the script."""

    line: str


@click.group()
def run() -> None:
    """Look at one training run, and steer this node's part in it.

    \b
    Example:
      shoal run show shakespeare
      shoal run curves shakespeare --out curves.png
      shoal run stop shakespeare; shoal run resume shakespeare
      shoal run export shakespeare --out model.safetensors
      shoal run export shakespeare --serve
    """


@run.command()
@click.argument("name")
@json_option
@click.pass_obj
def show(context: Context, name: str, as_json: bool) -> None:
    """Show a run: where it is, how it learns, its last certificate, and who brought what."""
    client = context.client()
    found = RunDetail(
        get_run(client, name),
        latest(certificates_of(client, name, last=1)),
        contributions_of(client, name),
    )
    if as_json:
        echo_json(found)
        return
    names, me = _names(client)
    for head, text in run_lines(found.run, found.last, names):
        click.echo(f"{head:<9}  {plain(text)}")
    if found.contributions:
        click.echo()
        echo_table(PEER_HEADS, peer_rows(found.contributions, names, me))


@run.command()
@click.argument("name")
@json_option
@click.pass_obj
def peers(context: Context, name: str, as_json: bool) -> None:
    """Show what each peer has done for a run, as this node has seen it.

    SAMPLES is the weight that it brought in all, LEFT OUT how many attempts went on without it, IN
    and OUT what this node exchanged with it, WAITED how long this node was ready before it.
    """
    client = context.client()
    found = contributions_of(client, name)
    if as_json:
        echo_json(found)
        return
    echo_table(PEER_HEADS, peer_rows(found, *_names(client)))
    if not found:
        click.echo("no round is committed yet", err=True)


def _names(client: Client) -> tuple[dict[str, str], str]:
    """Return names by peer ID, and our own peer ID."""
    members = client.members()
    me = next((member.peer for member in members if member.me), "")
    return {member.peer: member.name for member in members}, me


@run.command()
@click.argument("name")
@json_option
@click.pass_obj
def stop(context: Context, name: str, as_json: bool) -> None:
    """Stop this node's part in a run; the others go on."""
    stopped = stop_run(context.client(), name)
    if as_json:
        echo_json(stopped)
        return
    click.echo(f"run {stopped.name} {stopped.state} at round {stopped.round}")
    click.echo(f"`shoal run resume {stopped.name}` goes on", err=True)


@run.command()
@click.argument("name")
@click.option("--detach", is_flag=True, help="Return at once; the run goes on.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document per line.")
@click.pass_obj
def resume(context: Context, name: str, detach: bool, as_json: bool) -> None:
    """Go on with a run that was stopped, failed, or ended with the daemon.

    It has its script and settings again, and begins with its checkpoint, or with what the others
    have reached meanwhile.
    """
    client = context.client()
    resumed = resume_run(client, name)
    if as_json:
        echo_json(resumed)
    else:
        click.echo(
            f"run {resumed.name} goes on; `shoal run stop {resumed.name}` stops it", err=True
        )
    if not detach:
        follow_it(client, resumed.name, as_json=as_json)


@run.command()
@click.argument("name")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document per line.")
@click.pass_obj
def follow(context: Context, name: str, as_json: bool) -> None:
    """Show a run as it goes on, as `shoal train` does; Ctrl-C leaves it running."""
    follow_it(context.client(), name, as_json=as_json)


@run.command()
@click.argument("name")
@click.option(
    "--out", metavar="FILE", type=click.Path(dir_okay=False, path_type=Path),
    help="Where to write it (default: NAME.safetensors, here).",
)  # fmt: skip
@click.option("--force", is_flag=True, help="Replace a file that is there.")
@click.option("--serve", is_flag=True, help="Make a model of them, which the swarm hosts.")
@click.option("--name", "model", default="", help="With --serve: its name (default: the run's).")
@click.option("--dtype", type=click.Choice(DTYPES), default="auto", help="With --serve.")
@json_option
@click.pass_obj
def export(
    context: Context,
    name: str,
    out: Path | None,
    force: bool,
    serve: bool,
    model: str,
    dtype: str,
    as_json: bool,
) -> None:
    """Write a run's parameters as one safetensors file, with the names the model has for them.

    With --serve the swarm answers with what it has learned: the run's trainer had a Hugging Face
    model (and told shoal.Trainer its tokenizer).
    """
    client = context.client()
    if serve:
        if out is not None or force:
            raise click.UsageError("--serve writes no file: leave --out and --force away")
        last = follow_library(serve_run(client, name, ServeRun(model, dtype)), as_json=as_json)
        if not as_json and last.model is not None:
            click.echo(last.model.name)
            click.echo(f"`shoal map {last.model.name}` shows when it is ready", err=True)
        return
    path = (out or Path(f"{name}.safetensors")).resolve()
    if path.exists() and not force:
        raise ClientError(
            f"{path} is there already", hint="--force replaces it, --out names another"
        )
    if not path.parent.is_dir():
        raise ClientError(f"there is no folder {path.parent}", hint=f"mkdir -p {path.parent}")
    found = export_run(client, name, str(path))
    if as_json:
        echo_json(found)
        return
    click.echo(found.path)
    rounds = "/".join(map(str, sorted(set(found.rounds))))
    click.echo(f"{found.tensors} tensors before round {rounds}, root {found.root}", err=True)


@run.command()
@click.argument("sources", metavar="NAME|FILE...", nargs=-1, required=True)
@click.option(
    "--out", metavar="FILE.png", type=click.Path(dir_okay=False, path_type=Path),
    help="Write a picture.",
)  # fmt: skip
@click.option("--terminal", is_flag=True, help="Draw in the terminal, also with --out.")
@click.option(
    "--by", type=click.Choice(list(AXES)), default="step", show_default=True,
    help="What to draw the loss over; bytes are those that this node sent.",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print the points: one metric per line.")
@click.pass_obj
def curves(
    context: Context,
    sources: tuple[str, ...],
    out: Path | None,
    terminal: bool,
    by: str,
    as_json: bool,
) -> None:
    """Draw the loss of runs of this node (NAME), or of any node (FILE, a metrics.jsonl).

    On a terminal as text, elsewhere as a picture NAME.png; several sources share one picture.
    """
    found = [(source, _metrics(context, source)) for source in sources]
    if as_json:
        for _, rows in found:
            for row in rows:
                echo_json(row)
        return
    drawn = together(found)
    if terminal or (out is None and on_terminal()):
        draw_text(drawn, AXES[by])
    if out is not None or not (terminal or on_terminal()):
        path = out or Path(f"{Path(sources[0]).stem}.png")
        draw_png(drawn, path, AXES[by])
        click.echo(str(path))


def _metrics(context: Context, source: str) -> list[Metric]:
    path = Path(source)
    if path.suffix == ".jsonl":
        if not path.is_file():
            raise ClientError(f"there is no file {source}")
        return read_file(path)
    return metrics_of(context.client(), source)


@run.command()
@click.argument("name")
@click.option("-f", "--follow", "goes_on", is_flag=True, help="Go on with new lines to its end.")
@click.option(
    "-n", "--lines", default=20, show_default=True, type=click.IntRange(0, 100_000),
    help="How many of the last lines.",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document per line.")
@click.pass_obj
def log(context: Context, name: str, goes_on: bool, lines: int, as_json: bool) -> None:
    """Print the end of what a run's script has said: its train.log."""
    client = context.client()
    path = Path(get_run(client, name).directory) / "train.log"
    if not path.is_file() and not goes_on:
        raise ClientError(
            f"run {name} has no log here",
            hint="only a run that `shoal train` started has one; others print where they run",
        )
    with suppress(KeyboardInterrupt):  # the reader has seen enough
        pieces = read_log(client, name, path, lines=lines, goes_on=goes_on)
        if as_json:
            for line in whole_lines(pieces):
                echo_json(LogText(line))
            return
        for piece in pieces:
            click.echo(piece, nl=False)


def read_log(
    client: Client, name: str, path: Path, *, lines: int, goes_on: bool
) -> Iterator[bytes]:
    """Yield the last lines of a log, then with `goes_on` what is added until the run ends."""
    position = max(0, path.stat().st_size - LOG_READ_BYTES) if path.is_file() else 0
    piece, position = _read_on(path, position)
    kept = piece.splitlines(keepends=True)
    yield b"".join(kept[len(kept) - min(lines, len(kept)) :])
    while goes_on:
        ended = not _is_active(client, name)  # asked before the last look: nothing is missed
        piece, position = _read_on(path, position)
        if piece:
            yield piece
        elif ended:
            return
        else:
            time.sleep(LOG_POLL_S)


def whole_lines(pieces: Iterable[bytes]) -> Iterator[str]:
    """Yield lines, each when it is whole; at the end also one that is not."""
    kept = b""
    for piece in pieces:
        *lines, kept = (kept + piece).split(b"\n")
        for line in lines:
            yield line.decode("utf-8", "replace")
    if kept:
        yield kept.decode("utf-8", "replace")


def _read_on(path: Path, position: int) -> tuple[bytes, int]:
    try:
        with path.open("rb") as file:
            file.seek(position)
            data = file.read()
    except FileNotFoundError:
        return b"", position
    return data, position + len(data)


def _is_active(client: Client, name: str) -> bool:
    try:
        return get_run(client, name).state in ACTIVE
    except ApiError:
        return False
