"""What modelsync knows of a run, in the control API's words."""

import math

from node.metrics import RunFigures
from node.run_records import ACTIVE, Record
from protocols.modelsync import part
from protocols.modelsync.wire import Certificate
from shoal.runs import CertificateView, Contribution, Run


def certificate_view(certificate: Certificate) -> CertificateView:
    """Show a committed round."""
    return CertificateView(
        round=certificate.round,
        attempt=certificate.attempt,
        proposer=certificate.proposer,
        members=list(certificate.members),
        weights=certificate.weights,
        codec=certificate.codec,
        base_root=certificate.base_root.hex(),
        result=certificate.result.hex(),
        signatures=len(certificate.signatures),
        lane=certificate.lane,
        topology=certificate.topology,
        every=certificate.every,
        contributors=list(certificate.contributors or certificate.members),
    )


def contribution_view(contribution: part.Contribution) -> Contribution:
    """Show what one peer has done."""
    return Contribution(
        peer=contribution.peer,
        rounds=contribution.rounds,
        weight=contribution.weight,
        left_out=contribution.left_out,
        bytes_in=contribution.bytes_in,
        bytes_out=contribution.bytes_out,
        seconds=contribution.seconds,
        banned=contribution.banned,
    )


def merged(before: list[Contribution], now: list[Contribution]) -> list[Contribution]:
    """Add up two tables of a run, by peer: of an earlier trainer, and of the one of now."""
    found = {each.peer: each for each in before}
    for each in now:
        old = found.get(each.peer, Contribution(each.peer))
        found[each.peer] = Contribution(
            peer=each.peer,
            rounds=old.rounds + each.rounds,
            weight=old.weight + each.weight,
            left_out=old.left_out + each.left_out,
            bytes_in=old.bytes_in + each.bytes_in,
            bytes_out=old.bytes_out + each.bytes_out,
            seconds=old.seconds + each.seconds,
            banned=old.banned or each.banned,
        )
    return list(found.values())


def run_figures(record: Record, view: Run, table: list[Contribution]) -> RunFigures:
    """Show a run to Prometheus."""
    return RunFigures(
        name=record.name,
        is_active=record.state in ACTIVE,
        round=view.round,
        step=view.step,
        members=len(view.members),
        loss=math.nan if view.loss is None else view.loss,
        val_loss=math.nan if view.val_loss is None else view.val_loss,
        committed=record.totals.committed,
        attempts=record.totals.attempts,
        left_out=sum(each.left_out for each in table),
        bytes_in=record.totals.bytes_in,
        bytes_out=record.totals.bytes_out,
        seconds=record.totals.seconds,
        banned=sum(each.banned for each in table),
    )
