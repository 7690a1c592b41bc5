"""What the store tells a person: a clock that is off, rows that were damaged."""

import logging
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from tests.sim.replicas import Links, signer, start_store


@pytest.mark.parametrize(("ahead_ms", "is_told"), [(16_000, True), (-16_000, True), (9_000, False)])
async def test_a_clock_that_is_off_is_told_once(
    autojump_clock: MockClock,
    nursery: trio.Nursery,
    caplog: pytest.LogCaptureFixture,
    ahead_ms: int,
    is_told: bool,
) -> None:
    links = Links()
    store = await start_store(nursery, links, 1, skew_ms=ahead_ms)
    for number in (2, 3, 4):
        await start_store(nursery, links, number)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            for number in (2, 3, 4):
                await store.sync_with(signer(number).peer)
                await trio.sleep(1)
    assert store.clock_skew_ms == pytest.approx(ahead_ms, abs=2)
    said = [one.getMessage() for one in caplog.records if "clock_is_off" in one.getMessage()]
    assert len(said) == is_told
    assert all(f"ahead_ms={store.clock_skew_ms}" in one for one in said)


async def test_damaged_rows_are_told_and_counted(
    autojump_clock: MockClock, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "store.db"
    for is_damaged in (False, True):
        async with trio.open_nursery() as nursery:
            with caplog.at_level(logging.WARNING):
                store = await start_store(nursery, Links(), 1, path=path)
            if is_damaged:
                assert store.stats().damaged == 1
                assert "store.damaged rows=1" in caplog.text
                assert [item.key for item in store.scan("kv")] == ["b"]
            else:
                assert "store.damaged" not in caplog.text
                await store.put("kv", "a", 1)
                await store.put("kv", "b", 1)
            nursery.cancel_scope.cancel()
        if not is_damaged:
            with closing(sqlite3.connect(path)) as db, db:
                db.execute("UPDATE entry SET checksum = 1 WHERE row = 1")
