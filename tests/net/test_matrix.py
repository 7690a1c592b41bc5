"""Real daemons behind routers: eight pairs that between them need every way to be reached.

All 55: `make test-net`.
"""

from pathlib import Path

import pytest

from tests.net import matrix
from tests.net.lab.lab import missing
from tests.net.truth import Pair

pytestmark = pytest.mark.skipif(missing() is not None, reason=str(missing()))

PAIRS: tuple[Pair, ...] = (
    ("open", "cgnat"),  # one side can simply be dialled
    ("fw", "udpblock"),  # both dial at once
    ("fullcone", "symmetric"),  # a random port, which only this one may be
    ("restricted", "cgnat-sym"),
    ("portrestricted", "cgnat"),  # two routers in a row
    ("portrestricted", "symseq"),  # the port must be predicted
    ("symseq", "udpblock"),
    ("symmetric", "cgnat"),  # by relay only
)


@pytest.mark.slow
def test_pairs_talk_and_are_direct_where_sockets_can_be(tmp_path: Path) -> None:
    results = matrix.run(PAIRS, delay_ms=matrix.DELAY_MS, note=print, folder=tmp_path)
    wrong = [each for each in results if not each.is_right]
    assert wrong == []
    assert [(each.one, each.other) for each in results if each.direct_s is None] == [
        ("symmetric", "cgnat")
    ]
