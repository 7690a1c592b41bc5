"""`kill -9` of a process that writes: whatever it acknowledged is there when it starts again."""

from pathlib import Path

from tests.soak.store_kill import kill_often

CYCLES = 30


def test_every_acknowledged_write_survives_kill_nine(tmp_path: Path) -> None:
    outcome = kill_often(tmp_path / "store.db", CYCLES, seed=7)
    assert outcome.kills == CYCLES
    assert outcome.acknowledged > 10 * CYCLES
    assert (outcome.lost, outcome.unreadable) == (0, 0)
    assert (outcome.damaged_rows, outcome.forks) == (0, 0)
