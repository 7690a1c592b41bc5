"""The NAT lab itself, with plain sockets: each router is what its name says."""

from collections.abc import Generator

import pytest

from tests.net import probes
from tests.net.lab.lab import Lab, Site, missing
from tests.net.lab.rules import KINDS, Kind
from tests.net.probes import Behaviour

pytestmark = pytest.mark.skipif(missing() is not None, reason=str(missing()))

EXPECTED: dict[Kind, Behaviour] = {
    "open": Behaviour("none", "EIF"),
    "fw": Behaviour("none", "APDF"),
    "fullcone": Behaviour("EIM", "EIF"),
    "restricted": Behaviour("EIM", "ADF"),
    "portrestricted": Behaviour("EIM", "APDF"),
    "symmetric": Behaviour("APDM", "APDF"),
    "symseq": Behaviour("APDM", "APDF"),
    "cgnat": Behaviour("EIM", "APDF"),
    "cgnat-sym": Behaviour("APDM", "APDF"),
    "udpblock": Behaviour("EIM", "APDF"),
}


@pytest.fixture(scope="module")
def lab() -> Generator[Lab]:
    """Two sites of each type."""
    plan = [Site(f"{kind}-{side}", kind) for kind in KINDS for side in "ab"]
    with Lab(plan) as made:
        yield made


@pytest.mark.parametrize("kind", KINDS)
def test_a_router_maps_and_filters_as_its_type(lab: Lab, kind: Kind) -> None:
    assert probes.behaviour_tcp(lab, f"{kind}-a1") == EXPECTED[kind]
    udp = None if kind == "udpblock" else EXPECTED[kind]
    assert probes.behaviour_udp(lab, f"{kind}-a1") == udp
