"""How answers and their routes look on a terminal. No I/O but the question what stdout is."""

import re
import sys
from collections.abc import Callable, Mapping

import click

from node.cli.context import echo_table, plain, short
from shoal.models import AnswerOptions, Trace, Usage

CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # all but tabs and line feeds


def shown(text: str) -> str:
    """Return an answer for standard output: to a terminal it gives no orders."""
    return CONTROLS.sub("\N{REPLACEMENT CHARACTER}", text) if sys.stdout.isatty() else text


def route_line(trace: Trace, usage: Usage | None) -> str:
    """Return where an answer was computed and how fast, in one line."""
    route = " > ".join(f"{hop.start}-{hop.end} {short(hop.peer)}" for hop in trace.route)
    count = "" if usage is None else f"{usage.completion_tokens} tokens, "
    return f"route {route}; {count}{trace.decode_tokens_per_s:.1f} tokens/s"


def echo_route(trace: Trace, usage: Usage | None, names: Mapping[str, str]) -> None:
    """Print each hop with its times, and where the time of one round trip went, on stderr."""
    rows = [
        (
            str(number),
            f"{hop.start}-{hop.end}",
            f"{plain(names.get(hop.peer, ''))} {short(hop.peer)}".strip(),
            f"{hop.link_ms:.2f} ms",
            f"{hop.compute_ms:.2f} ms",
            hop.codec,
        )
        for number, hop in enumerate(trace.route, 1)
    ]
    echo_table(("HOP", "BLOCKS", "NODE", "LINK", "COMPUTE", "GIVES"), rows, err=True)
    for line in told_of(trace, usage):
        click.echo(line, err=True)


def told_of(trace: Trace, usage: Usage | None) -> list[str]:
    """Return what else there is to say about an answer: its speed, and where the time went."""
    first = f"first token after {trace.first_token_s:.2f} s"
    if usage is not None:
        reused = f", {trace.reused_tokens} of them reused" if trace.reused_tokens else ""
        first += f" ({usage.prompt_tokens} tokens of prompt{reused})"
    lines = [f"{first}, then {trace.decode_tokens_per_s:.1f} tokens/s"]
    if trace.step_ms > 0:
        compute_ms = sum(hop.compute_ms for hop in trace.route)
        link_ms = sum(hop.link_ms for hop in trace.route)
        parts = (("compute", compute_ms), ("links", link_ms), ("rest", trace.rest_ms))
        where = ", ".join(f"{name} {ms:.1f} ms" for name, ms in parts)
        lines.append(f"one round trip {trace.step_ms:.1f} ms: {where}")
    if trace.drafted:
        lines.append(f"guessed ahead {trace.drafted} tokens, {trace.accepted} were right")
    if trace.replaced_hops:
        lines.append(f"lost and replaced on the way: {trace.replaced_hops}")
    return lines


_OPTIONS = (
    click.option(
        "--temperature",
        type=click.FloatRange(min=0, max=10),
        default=0.0,
        show_default=True,
        help="0 always takes the likeliest token.",
    ),
    click.option("--top-p", type=click.FloatRange(min=0, max=1, min_open=True), default=1.0),
    click.option("--seed", type=int, help="Makes sampling repeatable."),
    click.option("--stop", multiple=True, help="End before this text; may be repeated."),
    click.option(
        "--codec",
        type=click.Choice(["auto", "float32", "bfloat16", "float16", "int8"]),
        default="auto",
        show_default=True,
        help="Of the activations between nodes.",
    ),
    click.option(
        "--speculate/--no-speculate",
        default=True,
        help="Guess tokens ahead where links are slow; the answer is the same.",
    ),
)


def answer_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options that `generate` and `chat` share; `to_options` reads them."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def to_options(
    *,
    model: str,
    max_tokens: int | None,
    temperature: float,
    top_p: float,
    seed: int | None,
    stop: tuple[str, ...],
    codec: str,
    speculate: bool,
) -> AnswerOptions:
    """Return what the daemon is asked."""
    return {
        "model": model,
        "max_tokens": max_tokens,
        "temperature": temperature,
        "top_p": top_p,
        "seed": seed,
        "stop": list(stop),
        "codec": codec,
        "speculate": speculate,
    }
