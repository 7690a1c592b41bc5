"""Which signatures bind: those in attempts that are not void."""

import pytest

from protocols.modelsync.ballots import Electorate
from protocols.modelsync.machine import Propose, Rounds
from protocols.modelsync.wire import Go, Ready
from wire.ids import PeerId


@pytest.mark.parametrize("is_void", [True, False])
def test_what_was_signed_binds_unless_the_attempt_is_void(
    is_void: bool,
) -> None:
    rounds = Rounds("run", PeerId("A"), Electorate(1), patience_s=10.0)
    rounds.submit(Ready("run", 0, b"s" * 32, 1.0, 10, "float32"))
    (effect,) = rounds.tick(1.0)
    assert isinstance(effect, Propose)
    rounds.hold(effect.prepare.bound(bytes(32), Go()))
    rounds.failed(effect.prepare.ballot, [], is_void=is_void)
    assert (rounds.bound is None) == is_void
    assert rounds.mine is not None
    assert (rounds.mine.bound is None) == is_void
