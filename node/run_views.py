"""What modelsync knows of a run, in the control API's words."""

from protocols.modelsync import part
from protocols.modelsync.wire import Certificate
from shoal.runs import CertificateView, Contribution


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
