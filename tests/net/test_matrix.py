"""Real daemons behind routers: eight pairs that between them need every way to be reached.

All 55: `make test-net`.
"""

import pytest

from benchmarks.reach_stage import DELAY_MS
from tests.net import matrix
from tests.net.lab.lab import missing
from tests.net.truth import Pair

pytestmark = pytest.mark.skipif(missing() is not None, reason=str(missing()))

PAIRS: tuple[Pair, ...] = (
    ("open", "cgnat"),  # one side can simply be dialled, through two routers
    ("fw", "cgnat"),
    ("fw", "udpblock"),
    ("fw", "symseq"),  # the port must be predicted
    ("fullcone", "symmetric"),  # a random port, which lets in only what answers it
    ("portrestricted", "cgnat"),  # both must dial at once
    ("portrestricted", "symseq"),
    ("portrestricted", "symmetric"),  # by relay only
)


@pytest.mark.slow
def test_pairs_talk_and_are_direct_where_sockets_can_be() -> None:
    results = matrix.run(PAIRS, delay_ms=DELAY_MS)
    wrong = [each for each in results if not each.is_right]
    assert wrong == []
    assert [(each.one, each.other) for each in results if each.direct_s is None] == [
        ("portrestricted", "symmetric")
    ]
