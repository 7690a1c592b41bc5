"""The commands about served models: serve, generate, models, unserve."""

import re
import sys
from pathlib import Path

import click

from node.cli.context import Context, echo_json, echo_table, json_option, on_terminal, short
from shoal import models as served
from shoal.models import Answer, Model, ServeProgress, Stage

CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # all but tabs and line feeds


@click.command()
@click.argument("path", type=click.Path(exists=True, path_type=Path))
@click.option("--name", default="", help="What the model is called; default: from its path.")
@click.option("--nodes", type=click.IntRange(min=1), help="Split it over at most so many nodes.")
@json_option
@click.pass_obj
def serve(context: Context, path: Path, name: str, nodes: int | None, as_json: bool) -> None:
    """Serve a model split over the swarm: a Hugging Face folder, or a .gguf file.

    Returns when every layer is ready; the model stays in service until `shoal unserve`.
    """
    last: ServeProgress | None = None
    shown = ""
    steps = served.serve(context.client(), str(path.resolve()), name=name, nodes=nodes)
    for last in steps:
        line = _progress_line(last)
        if line != shown:
            click.echo(line, err=True)
            shown = line
    if last is None or last.model is None:
        raise click.ClickException("the daemon ended the conversation early; see `shoal logs`")
    if as_json:
        echo_json(last.model)
    else:
        _print_stages([last.model])


def _progress_line(progress: ServeProgress) -> str:
    if progress.model is None:
        return f"{progress.name}: {progress.state}"
    states = [f"{short(stage.peer)} {_state(stage)}" for stage in progress.model.stages]
    return f"{progress.name}: " + ", ".join(states)


def _state(stage: Stage) -> str:
    if stage.state == "fetching" and stage.total_bytes:
        return f"fetching {100 * stage.done_bytes // stage.total_bytes} %"
    return f"{stage.state} ({stage.note})" if stage.note else stage.state


@click.command()
@click.argument("prompt")
@click.option("--model", default="", help="Which served model; needed if there are several.")
@click.option("--chat", is_flag=True, help="Ask as a user in a conversation.")
@click.option("--max-tokens", type=click.IntRange(min=1), default=64, show_default=True)
@click.option(
    "--temperature",
    type=click.FloatRange(min=0, max=10),
    default=0.0,
    show_default=True,
    help="0 always takes the likeliest token.",
)
@click.option("--top-p", type=click.FloatRange(min=0, max=1, min_open=True), default=1.0)
@click.option("--seed", type=int, help="Makes sampling repeatable.")
@click.option("--stop", multiple=True, help="End before this text; may be repeated.")
@click.option("--stream/--no-stream", default=True, help="Print the text as it comes.")
@json_option
@click.pass_obj
def generate(
    context: Context,
    prompt: str,
    model: str,
    chat: bool,
    max_tokens: int,
    temperature: float,
    top_p: float,
    seed: int | None,
    stop: tuple[str, ...],
    stream: bool,
    as_json: bool,
) -> None:
    """Let a served model continue PROMPT.

    The text goes to standard output, the route and the speed to standard error.
    """
    text, end = "", Answer("")
    for end in served.generate(
        context.client(),
        prompt,
        model=model,
        chat=chat,
        max_tokens=max_tokens,
        temperature=temperature,
        top_p=top_p,
        seed=seed,
        stop=list(stop),
    ):
        text += end.text
        if stream and not as_json:
            click.echo(_shown(end.text), nl=False)
            sys.stdout.flush()
    _print_end(text, end, stream=stream, as_json=as_json)


def _shown(text: str) -> str:
    """Return an answer for standard output: to a terminal it gives no orders."""
    return CONTROLS.sub("\N{REPLACEMENT CHARACTER}", text) if sys.stdout.isatty() else text


def _print_end(text: str, end: Answer, *, stream: bool, as_json: bool) -> None:
    if as_json:
        echo_json(Answer(text, end.finish_reason, end.usage, end.trace))
        return
    click.echo("" if stream else _shown(text))
    if end.trace is not None and end.usage is not None:
        route = " > ".join(f"{hop.start}-{hop.end} {short(hop.peer)}" for hop in end.trace.route)
        speed = f"{end.usage.completion_tokens} tokens, {end.trace.tokens_per_s:.1f} tokens/s"
        click.echo(f"route {route}; {speed}", err=True)


@click.command()
@json_option
@click.pass_obj
def models(context: Context, as_json: bool) -> None:
    """List served models, and which node computes which layers."""
    found = served.models(context.client())
    if as_json:
        echo_json(found)
        return
    _print_stages(found)
    if not found:
        click.echo("no models yet; `shoal serve PATH` serves one", err=True)


def _print_stages(found: list[Model]) -> None:
    rows = [
        (model.name, f"{stage.start}-{stage.end}", short(stage.peer), _state(stage))
        for model in found
        for stage in model.stages
    ]
    echo_table(("MODEL", "LAYERS", "PEER", "STATE"), rows)


@click.command()
@click.argument("name")
@click.pass_obj
def unserve(context: Context, name: str) -> None:
    """Take a served model out of service, on all nodes."""
    served.unserve(context.client(), name)
    if on_terminal():
        click.echo(f"{name} is out of service", err=True)


COMMANDS: dict[str, click.Command] = {
    "serve": serve,
    "generate": generate,
    "models": models,
    "unserve": unserve,
}
