"""What channels are told of a peer's place: a public address counts, a private one does not."""

import pytest

from node.channels import origin_of
from node.host.views import PeerView
from tests.unit.fake_node import BOB, EVE


def view(address: str) -> PeerView:
    return PeerView(BOB, address, "out", "direct", 0.4, 1, 1, 0.0, 1)


@pytest.mark.parametrize(
    ("multiaddr", "address"),
    [
        ("/ip4/8.8.8.8/tcp/4001", "8.8.8.8"),
        ("/ip6/2600::1/tcp/1", "2600::1"),
        ("/ip4/10.0.0.2/tcp/9", ""),
        ("/ip4/127.0.0.1/tcp/9", ""),
        ("/dns4/example/tcp/9", ""),
        ("", ""),
    ],
)
def test_only_public_addresses_are_scored(multiaddr: str, address: str) -> None:
    origin = origin_of(lambda: [view(multiaddr)])
    assert origin(BOB) == (address, True)
    assert origin(EVE) == ("", False)
