"""`shoal map`: the picture of blocks over nodes, and the routes of the last answers."""

import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import click

from node.cli.context import Context, echo_json, json_option, plain, seconds, short
from node.cli.models import names_of
from shoal import models as served
from shoal.client import Client
from shoal.models import Map, Model, Stage, Trace

LABEL_MAX = 22  # characters of a node's name in front of its row
WIDTH_MIN = 40  # columns; below it nothing can be read
ROUTES_MAX = 3  # of the last answers
CLEAR = "\x1b[H\x1b[J"  # to the top left corner, and nothing below


@dataclass(frozen=True)
class Cells:
    """How a cell looks."""

    loads: str  # of a ready stage: idle to busy
    coming: str
    draining: str
    broken: str
    nothing: str
    missing: str


UNICODE = Cells("░▒▓█", "◌", "▹", "×", "·", "?")
ASCII = Cells("-=#@", "o", ">", "x", ".", "?")
LEGEND = ("ready (idle to busy)", "coming", "draining", "failed", "not here", "no node has it")


@click.command("map")
@click.argument("model", default="")
@click.option("--watch", is_flag=True, help="Draw it again and again, until Ctrl-C.")
@click.option("--interval", type=seconds, default="1s", show_default=True, help="With --watch.")
@json_option
@click.pass_obj
def draw(context: Context, model: str, watch: bool, interval: float, as_json: bool) -> None:
    """Draw which node computes which blocks of MODEL (or of all models).

    A row for each node, a cell for each block; below, how many nodes have it, and the routes that
    the last answers of this node took.
    """
    client = context.client()
    while True:
        maps = _maps(client, model)
        if as_json:
            echo_json(maps)
        else:
            _show(maps, names_of(client), clear=watch and sys.stdout.isatty())
        if not watch:
            return
        time.sleep(interval)


def _maps(client: Client, model: str) -> list[Map]:
    names = [model] if model else [each.name for each in served.models(client)]
    return [served.model_map(client, name) for name in names]


def _show(maps: list[Map], names: Mapping[str, str], *, clear: bool) -> None:
    width = shutil.get_terminal_size((100, 24)).columns
    cells = UNICODE if "utf" in (sys.stdout.encoding or "").lower() else ASCII
    lines = [line for each in maps for line in [*picture(each, names, width, cells), ""]]
    click.echo((CLEAR if clear else "") + "\n".join(lines).rstrip("\n"))
    if not maps:
        click.echo("no models yet; `shoal serve PATH` serves one", err=True)


def picture(drawn: Map, names: Mapping[str, str], width: int, cells: Cells) -> list[str]:
    """Return the lines of one model's picture, none longer than `width`.

    Where blocks are more than columns, a cell stands for several: the worst of them is shown.
    """
    model = drawn.model
    label = min(LABEL_MAX, max([len(_label(s.peer, names)) for s in model.stages] + [8]))
    room = max(WIDTH_MIN, width) - label - 2
    per_cell = -(-max(1, model.layers) // room)
    groups = [
        range(at, min(at + per_cell, model.layers)) for at in range(0, model.layers, per_cell)
    ]
    rows = [_head(model, per_cell), f"{'blocks':<{label}}  {_ruler(groups)}"]
    for peer in dict.fromkeys(stage.peer for stage in model.stages):
        own = [stage for stage in model.stages if stage.peer == peer]
        line = "".join(_cell(own, group, cells) for group in groups)
        rows.append(f"{_label(peer, names):<{label}}  {line}")
    replicas = coverage(model)
    counts = "".join(_count(min(replicas[block] for block in group), cells) for group in groups)
    rows.append(f"{'replicas':<{label}}  {counts}")
    rows += [_stage_line(stage, names) for stage in model.stages if stage.state != "ready"]
    rows += _gap_lines(replicas)
    rows += [_route(trace, names) for trace in drawn.answers[:ROUTES_MAX]]
    looks = (cells.loads, *(getattr(cells, name) for name in _KINDS))
    rows.append("  ".join(f"{look} {what}" for look, what in zip(looks, LEGEND, strict=True)))
    return [row[:width].rstrip() for row in rows]


_KINDS = ("coming", "draining", "broken", "nothing", "missing")


def coverage(model: Model) -> list[int]:
    """Return how many nodes compute each block now."""
    return [
        sum(s.state == "ready" and s.start <= block < s.end for s in model.stages)
        for block in range(model.layers)
    ]


def _head(model: Model, per_cell: int) -> str:
    state = "ready" if model.ready else "not ready"
    each = f", {per_cell} in a cell" if per_cell > 1 else ""
    return f"{model.name} {model.model[:12]}: {state}, {model.layers} blocks{each}"


def _ruler(groups: Sequence[range]) -> str:
    """Number every tenth cell."""
    line = [" "] * len(groups)
    for cell in range(0, len(groups), 10):
        for at, digit in enumerate(str(groups[cell].start)):
            if cell + at < len(line):
                line[cell + at] = digit
    return "".join(line)


def _label(peer: str, names: Mapping[str, str]) -> str:
    name = plain(names.get(peer, ""))[: LABEL_MAX - 10]
    return f"{name} {short(peer)}".strip()


def _cell(own: list[Stage], group: range, cells: Cells) -> str:
    """Return the look of a node's share in some blocks."""
    here = [s for s in own if any(s.start <= block < s.end for block in group)]
    if not here:
        return cells.nothing
    stage = max(here, key=lambda s: s.state == "ready")
    match stage.state:
        case "ready":
            level = int(stage.load * len(cells.loads))
            return cells.loads[max(0, min(level, len(cells.loads) - 1))]
        case "draining":
            return cells.draining
        case "failed" | "refused":
            return cells.broken
        case _:
            return cells.coming


def _count(replicas: int, cells: Cells) -> str:
    return cells.missing if replicas == 0 else str(min(replicas, 9))


def _stage_line(stage: Stage, names: Mapping[str, str]) -> str:
    line = f"{_label(stage.peer, names)} {stage.start}-{stage.end}: {state_text(stage)}"
    return plain(line)


def state_text(stage: Stage) -> str:
    """Return a stage's state with how far it is, or why it failed."""
    if stage.state == "fetching" and stage.total_bytes:
        return f"fetching {100 * stage.done_bytes // stage.total_bytes} %"
    return f"{stage.state} ({stage.note})" if stage.note else stage.state


def _gap_lines(replicas: list[int]) -> list[str]:
    spans: list[list[int]] = []
    for block in (block for block, count in enumerate(replicas) if not count):
        if spans and spans[-1][1] == block:
            spans[-1][1] = block + 1
        else:
            spans.append([block, block + 1])
    if not spans:
        return []
    return ["no node has blocks " + ", ".join(f"{start}-{end}" for start, end in spans)]


def _route(trace: Trace, names: Mapping[str, str]) -> str:
    route = " > ".join(f"{_label(hop.peer, names)} {hop.start}-{hop.end}" for hop in trace.route)
    lost = f", {trace.replaced_hops} replaced" if trace.replaced_hops else ""
    return f"answer: {route}; {trace.decode_tokens_per_s:.1f} tokens/s{lost}"


COMMANDS: dict[str, click.Command] = {"map": draw}
