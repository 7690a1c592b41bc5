"""How runs are told: lines of progress, tables, and what a run looks like at a glance. No I/O."""

from collections.abc import Iterable, Mapping, Sequence

from node.cli.context import plain, short
from shoal.runs import CertificateView, Contribution, Metric, Run

RUN_HEADS = ("RUN", "STATE", "ROUND", "STEP", "LOSS", "VAL", "MEMBERS", "STRATEGY", "WIRE", "ROOT")
PEER_HEADS = (
    "PEER",
    "NAME",
    "ROUNDS",
    "SAMPLES",
    "SHARE",
    "LEFT OUT",
    "IN",
    "OUT",
    "WAITED",
    "NOTE",
)
ROOT_SHOWN = 12  # hex digits: enough to see that two are equal
_MINUTES_FROM_S, _HOURS_FROM_S = 90, 5400  # where a smaller unit would be hard to read


def metric_line(metric: Metric, lanes: int = 1) -> str:
    """Return one line of progress; of a run with several lanes it says which."""
    lane = f" lane {metric.lane}" if lanes > 1 else ""
    parts = [f"round {metric.round}/{metric.rounds}{lane}", f"step {metric.step}"]
    if metric.loss is not None:
        parts.append(f"loss {metric.loss:.3f}")
    if metric.val_loss is not None:
        parts.append(f"val {metric.val_loss:.3f}")
    if metric.peers:
        parts.append(f"{metric.peers} member{'s' if metric.peers > 1 else ''}")
        codec = f" {metric.codec}" if metric.codec else ""
        parts.append(f"{size(metric.bytes_out)} out, {size(metric.bytes_in)} in{codec}")
        again = f" ({metric.attempt + 1} attempts)" if metric.attempt else ""
        parts.append(f"{metric.seconds:.1f} s{again}")
    if metric.eta_s is not None:
        parts.append(f"{duration(metric.eta_s)} left")
    if metric.note:
        parts.append(plain(metric.note))
    return "  ".join(parts)


def run_row(run: Run) -> tuple[str, ...]:
    """Return a run as a row under RUN_HEADS."""
    return (
        run.name,
        run.state,
        f"{run.round}/{run.rounds}" if run.rounds else "-",
        str(run.step),
        loss(run.loss),
        loss(run.val_loss),
        str(len(run.members)),
        run.strategy or "-",
        run.wire or "-",
        run.root[:ROOT_SHOWN] or "-",
    )


def run_lines(
    run: Run, last: CertificateView | None, names: Mapping[str, str]
) -> list[tuple[str, str]]:
    """Return what `run show` says above the table: heads and texts."""
    where = f", pid {run.pid}" if run.pid is not None else ""
    lines = [
        ("run", run.name),
        ("state", f"{run.state}{where}"),
        ("round", _progress(run)),
        ("strategy", run.strategy or "-"),
        ("wire", f"{run.wire or '-'}, {run.lanes} lane{'s' if run.lanes != 1 else ''}"),
        ("members", people(run.members, names)),
        ("root", run.root or "-"),
    ]
    if run.settings:
        lines.insert(4, ("settings", run.settings))
    if run.aggregator not in ("", "mean"):
        lines.insert(4, ("averages", run.aggregator))
    if run.waiting_for:
        lines.append(("waits for", people(run.waiting_for, names)))
    if last is not None:
        lines.append(("last", _certificate(last, names)))
    if run.directory:
        lines.append(("folder", run.directory))
    if run.error:
        lines.append(("error", run.error))
    return lines


def _progress(run: Run) -> str:
    parts = [f"{run.round} of {run.rounds or '?'}", f"step {run.step}"]
    if run.loss is not None:
        parts.append(f"loss {run.loss:.3f}")
    if run.val_loss is not None:
        parts.append(f"held-out {run.val_loss:.3f}")
    return ", ".join(parts)


def people(peers: Sequence[str], names: Mapping[str, str]) -> str:
    """Return how many peers, and their names and short IDs."""
    told = [f"{names.get(peer, '')} {short(peer)}".strip() for peer in peers]
    return f"{len(peers)}: {', '.join(told)}" if peers else "none"


def _certificate(last: CertificateView, names: Mapping[str, str]) -> str:
    proposer = names.get(last.proposer) or short(last.proposer)
    lane = f" of lane {last.lane}" if last.lane else ""
    shape = "" if last.topology == "all" else f", {last.topology}"
    return (
        f"round {last.round}{lane}, attempt {last.attempt}, proposed by {proposer}, {last.codec}"
        f"{shape}, signed by {last.signatures} of {len(last.members)},"
        f" result {last.result[:ROOT_SHOWN]}"
    )


def peer_rows(
    found: Iterable[Contribution], names: Mapping[str, str], me: str
) -> list[tuple[str, ...]]:
    """Return the contribution table under PEER_HEADS, who brought most first."""
    rows = sorted(found, key=lambda c: (c.banned, -c.weight, -c.rounds, c.peer))
    total = sum(row.weight for row in rows)
    return [
        (
            short(row.peer),
            names.get(row.peer, "") or "-",
            str(row.rounds),
            f"{row.weight:.6g}",
            f"{100 * row.weight / total:.0f}%" if total else "-",
            str(row.left_out),
            size(row.bytes_in),
            size(row.bytes_out),
            f"{row.seconds:.1f} s",
            "banned" if row.banned else "me" if row.peer == me else "",
        )
        for row in rows
    ]


def latest(certificates: Iterable[CertificateView]) -> CertificateView | None:
    """Return the certificate of the last round; of several lanes, the highest lane's."""
    return max(certificates, key=lambda c: (c.round, c.lane, c.attempt), default=None)


def loss(value: float | None) -> str:
    """Return a loss as a cell."""
    return "-" if value is None else f"{value:.3f}"


def size(size_bytes: float) -> str:
    """Return bytes in decimal units, as links are sold."""
    for unit in ("B", "kB", "MB"):
        if size_bytes < 999.5:  # what rounds to 1000 belongs to the next unit
            return f"{size_bytes:.3g} {unit}"
        size_bytes /= 1000
    return f"{size_bytes:.3g} GB"


def duration(seconds: float) -> str:
    """Return a time that is left."""
    if seconds < _MINUTES_FROM_S:
        return f"{seconds:.0f} s"
    if seconds < _HOURS_FROM_S:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
