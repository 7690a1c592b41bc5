"""wire/faults.py: what a failure undoes."""

import pytest
import trio

from wire.faults import OnFailure


def test_a_failure_undoes_and_passes() -> None:
    undone: list[str] = []
    with pytest.raises(KeyError), OnFailure(lambda: undone.append("x")):
        raise KeyError
    with OnFailure(lambda: undone.append("y")):
        pass
    assert undone == ["x"]


async def test_a_cancellation_is_a_failure_unless_only_errors_count() -> None:
    undone: list[str] = []
    with trio.CancelScope() as scope:
        scope.cancel()
        with OnFailure(lambda: undone.append("any")), OnFailure(undone.clear, Exception):
            await trio.lowlevel.checkpoint()
    assert undone == ["any"]
    with pytest.raises(KeyError), OnFailure(undone.clear, Exception):
        raise KeyError
    assert undone == []
