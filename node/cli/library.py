"""The commands about models as content: the group `shoal model`."""

import os
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from node.cli.audits import audit
from node.cli.blobs import size_text
from node.cli.context import Context, echo_json, echo_table, json_option, plain, short
from shoal import library
from shoal.errors import ClientError
from shoal.library import AddModel, KnownModel, LibraryProgress, ModelHost

STEP_PERCENT = 10  # between two lines of progress where there is no terminal
CID_SHOWN = 16  # characters of a CID in tables; --json has all
DTYPES = ("auto", "float32", "bfloat16", "float16")
_JSON_LINES = "Print progress as JSON lines; the last one has the result."

lines_option = click.option("--json", "as_json", is_flag=True, help=_JSON_LINES)


@click.group()
def model() -> None:
    """Models as content: add, look at, keep, check and forget them.

    A model is a manifest of parts (configuration, tokenizer, one file per block), each a blob; the
    name of all of it is a hash. Nodes that compute some blocks fetch those only.

    \b
      shoal model add ./SmolLM2 --name smol     a Hugging Face folder
      shoal model add org/name                  from the hub, or its cache here
      shoal model add model-q4.gguf             dequantised
      shoal serve smol                          let the swarm host it
    """


@model.command()
@click.argument("source")
@click.option("--name", default="", help="What the model is called; default: from its source.")
@click.option(
    "--dtype",
    type=click.Choice(DTYPES),
    default="auto",
    show_default=True,
    help="What it is computed in; auto is the model's own (of a .gguf file float32).",
)
@lines_option
@click.pass_obj
def add(context: Context, source: str, name: str, dtype: str, as_json: bool) -> None:
    """Add SOURCE: a Hugging Face folder, a .gguf file, or ORG/NAME[@REVISION] on the hub.

    Its parts are pinned here (`shoal model unpin` lets them go). Nothing computes it until it is
    hosted: `shoal serve NAME`, or `shoal host NAME` on a node.
    """
    request = AddModel(source_of(source), name, dtype)
    last = follow(library.add_model(context.client(), request), as_json=as_json)
    if not as_json and last.model is not None:
        click.echo(f"{last.model.name}: {_about(last.model)}", err=True)
        click.echo(last.model.model)


@model.command()
@json_option
@click.pass_obj
def ls(context: Context, as_json: bool) -> None:
    """List the models that the swarm knows, and what of them is here."""
    found = library.known_models(context.client())
    if as_json:
        echo_json(found)
        return
    heads = ("NAME", "LAYERS", "PARAMETERS", "SIZE", "DTYPE", "HERE", "HOSTED")
    echo_table(heads, [_row(each) for each in found])
    if not found:
        click.echo("no models yet; `shoal model add SOURCE` adds one", err=True)


@model.command()
@click.argument("name")
@json_option
@click.pass_obj
def show(context: Context, name: str, as_json: bool) -> None:
    """Show one model: its parts, and which node has which blocks."""
    found = library.model_detail(context.client(), name)
    if as_json:
        echo_json(found)
        return
    one = found.model
    rows = [
        ("name", one.name),
        ("model", one.model),
        ("manifest", one.manifest),
        ("kind", _about(one)),
        ("shape", f"hidden {one.hidden_size}, vocabulary {one.vocab_size}, context {one.context}"),
        ("here", _here(one)),
        ("hosted", _hosted(one)),
        ("added by", ", ".join(short(peer) for peer in one.providers) or "-"),
    ]
    for head, value in rows:
        click.echo(f"{head:<9} {plain(value)}")
    echo_table(("PEER", "BLOCKS", "STATE"), [_host_row(host) for host in found.hosts])
    echo_table(
        ("PART", "SIZE", "CID", "HERE"),
        [
            (
                part.name,
                size_text(part.size_bytes),
                f"{part.cid[:CID_SHOWN]}…",
                "pinned" if part.here and part.pinned else "here" if part.here else "-",
            )
            for part in found.parts
        ],
    )


@model.command()
@click.argument("name")
@click.option("--force", is_flag=True, help="Also if it is hosted: its hosts stop.")
@json_option
@click.pass_obj
def rm(context: Context, name: str, force: bool, as_json: bool) -> None:
    """Make the swarm forget a model. Nodes that have pinned it keep its parts."""
    gone = library.remove_model(context.client(), name, force=force)
    if as_json:
        echo_json(gone)
    else:
        click.echo(f"{name} is forgotten, {size_text(gone.freed_bytes)} freed here", err=True)


@model.command()
@click.argument("name")
@click.option("--blocks", metavar="A:B", help="Blocks A to B (without B) only; default: all parts.")
@lines_option
@click.pass_obj
def pin(context: Context, name: str, blocks: str | None, as_json: bool) -> None:
    """Fetch a model's parts and keep them here, so that the swarm cannot lose them.

    What has arrived stays after Ctrl-C, and the daemon goes on by itself.
    """
    start, end = parse_blocks(blocks) if blocks is not None else (0, None)
    steps = library.pin_model(context.client(), name, start=start, end=end)
    last = follow(steps, as_json=as_json)
    if not as_json and last.model is not None:
        click.echo(f"{name}: {_here(last.model)}", err=True)


@model.command()
@click.argument("name")
@json_option
@click.pass_obj
def unpin(context: Context, name: str, as_json: bool) -> None:
    """Let a model's parts go when nothing here uses them any more."""
    found = library.unpin_model(context.client(), name)
    if as_json:
        echo_json(found)
    else:
        click.echo(f"{name}: what nothing here uses goes by itself", err=True)


@model.command()
@click.argument("name")
@lines_option
@click.pass_obj
def verify(context: Context, name: str, as_json: bool) -> None:
    """Hash all parts of a model that are here; bad ones are repaired from other nodes.

    Fails if one could not be.
    """
    last = follow(library.verify_model(context.client(), name), as_json=as_json)
    for bad in last.bad if not as_json else ():
        how = "repaired" if bad.repaired else f"not repaired: {plain(bad.why)}"
        click.echo(f"{bad.name} was damaged, {how}", err=True)
    lost = [bad for bad in last.bad if not bad.repaired]
    if lost:
        hint = f"`shoal model show {name}` says who should have it"
        raise ClientError(f"{len(lost)} of {last.checked} parts of {name} are bad", hint=hint)
    if not as_json:
        click.echo(f"{last.checked} parts are what they should be")


def source_of(text: str, *, may_be_name: bool = False) -> str:
    """Return a source as the daemon wants it: an absolute path, or a name of the hub; or the name
    of a model, where that may be meant. Raises ClientError.
    """
    path = Path(text).expanduser()
    if path.exists():
        return str(path.resolve())
    if may_be_name and "/" not in text:
        return text
    if text.startswith(("/", ".", "~")) or text.count("/") != 1:
        raise ClientError(f"{text} does not exist", hint="ORG/NAME is a model of the hub")
    return text


def parse_blocks(text: str) -> tuple[int, int | None]:
    """Read blocks such as 4:8, :8 or 4: (without the end). Raises click.BadParameter."""
    start, colon, end = text.partition(":")
    if not (colon and (start.isdecimal() or not start) and (end.isdecimal() or not end)):
        raise click.BadParameter(f"{text!r} is not like 4:8", param_hint="--blocks")
    return int(start or 0), int(end) if end else None


# --- what is shown -----------------------------------------------------------------------------


def _row(one: KnownModel) -> tuple[str, ...]:
    if not one.layers:
        return one.name, "?", "?", "?", "?", "-", _hosted(one)
    count, size = parameters_text(one.parameters), size_text(one.size_bytes)
    return one.name, str(one.layers), count, size, one.dtype, _here(one), _hosted(one)


def _about(one: KnownModel) -> str:
    count = parameters_text(one.parameters)
    return f"{one.family}, {one.layers} layers, {count}, {one.dtype}, {size_text(one.size_bytes)}"


def _here(one: KnownModel) -> str:
    if one.here_bytes == 0 and not one.pinned:
        return "-"
    is_whole = one.here == [(0, one.layers)] and one.here_bytes == one.size_bytes
    here = "all" if is_whole else spans_text(one.here) or "no blocks"
    if one.pinned == [(0, one.layers)]:
        return f"{here}, pinned"
    return f"{here}, pinned {spans_text(one.pinned)}" if one.pinned else here


def _hosted(one: KnownModel) -> str:
    if not one.listed:
        return "forgotten"
    if one.ready:
        return f"ready, {one.hosts} nodes" if one.hosts != 1 else "ready, 1 node"
    if one.hosts:
        return f"gaps {spans_text(one.gaps)}"
    return "waiting" if one.hosted else "-"


def _host_row(host: ModelHost) -> tuple[str, ...]:
    state = f"{host.state} ({host.note})" if host.note else host.state
    return short(host.peer), f"{host.start}:{host.end}", state


def spans_text(spans: library.Spans) -> str:
    """Return spans of blocks as people type them."""
    return " ".join(f"{start}:{end}" for start, end in spans)


def parameters_text(count: int) -> str:
    """Return a number of parameters as models are called: 135M, 7.2B."""
    for unit, size in (("B", 10**9), ("M", 10**6), ("K", 10**3)):
        if count >= size:
            value = count / size
            return f"{value:.1f}{unit}" if value < 10 else f"{value:.0f}{unit}"
    return str(count)


# --- progress ----------------------------------------------------------------------------------


def follow(steps: Iterator[LibraryProgress], *, as_json: bool) -> LibraryProgress:
    """Show work to its end; return its last word."""
    last: LibraryProgress | None = None
    with _display(as_json=as_json) as show:
        for last in steps:
            show(last)
    if last is None or last.state != "done":
        raise ClientError("the daemon ended the conversation early", hint="see `shoal logs`")
    return last


@contextmanager
def _display(*, as_json: bool) -> Generator[Callable[[LibraryProgress], None]]:
    if as_json:
        yield echo_json
    elif os.isatty(2):
        with _bar() as show:
            yield show
    else:
        yield _Lines().show


class _Lines:
    """A line for each state, and one for every 10 % of it, on standard error."""

    def __init__(self) -> None:
        self._said = ("starting", 0)

    def show(self, progress: LibraryProgress) -> None:
        """Print a line, if it is time for one."""
        size = progress.total_bytes
        percent = 100 * progress.done_bytes // size if size else 0
        step = percent // STEP_PERCENT
        if progress.state != "done" and (progress.state, step) != self._said:
            self._said = (progress.state, step)
            click.echo(f"{progress.state} {percent} %" if step else progress.state, err=True)


@contextmanager
def _bar() -> Generator[Callable[[LibraryProgress], None]]:
    """Draw a bar (rich costs 40 ms: only here)."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    columns = (
        TextColumn("{task.description:<11}"),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task, state = bar.add_task("", total=None), ""

        def show(progress: LibraryProgress) -> None:
            nonlocal task, state
            if progress.state != state:
                bar.remove_task(task)
                task, state = bar.add_task(progress.state, total=None), progress.state
            total = progress.total_bytes or None
            bar.update(task, completed=progress.done_bytes, total=total)

        yield show


model.add_command(audit)

COMMANDS: dict[str, click.Command] = {"model": model}
