"""What waits for its time or its grant, what proves a run, and who gives way after an absence."""

from crdt.absence import NEVER_SYNCED_MS, Absence
from crdt.intake import DEFERRED_AUTHOR_MAX, Deferred, follows
from crdt.namespace import Rules
from tests.unit.crdt_making import NOW_MS, OPEN, Chain

SKEW_MS = 30_000


def skew(_namespace: bytes) -> int:
    return SKEW_MS


def test_an_entry_from_the_future_comes_out_when_its_time_has_come() -> None:
    waiting, record = Deferred(), Chain().put("k", ms=60_000)
    waiting.hold(record, "future", NOW_MS)
    waiting.hold(record, "future", NOW_MS)
    assert waiting.due(NOW_MS + 29_999, skew) == []
    assert waiting.due(NOW_MS + 30_000, skew) == [record]
    assert len(waiting) == 0


def test_one_author_does_not_fill_the_list_and_a_grant_frees_only_what_waits_for_one() -> None:
    waiting, chain = Deferred(), Chain()
    for number in range(DEFERRED_AUTHOR_MAX + 5):
        waiting.hold(chain.put(f"k/{number}"), "no_grant", NOW_MS)
    assert len(waiting) == DEFERRED_AUTHOR_MAX
    waiting.hold(Chain(2).put("other", ms=90_000), "future", NOW_MS)
    assert len(waiting.granted(OPEN.id)) == DEFERRED_AUTHOR_MAX
    assert len(waiting) == 1
    assert waiting.due(NOW_MS + 3_600_001, skew)[0].key == "other"


def test_an_entry_that_skips_a_number_vouches_for_nobody() -> None:
    chain = Chain()
    first = chain.put("a")
    assert follows(chain.put("b"), first)
    chain.seq, chain.prev = first.seq + 1, first.link
    assert not follows(chain.put("c"), first)


def test_who_was_away_gives_way_and_a_newcomer_is_nobodys_measure() -> None:
    rules = Rules()
    away, fresh = rules.gc_ms, 1000
    assert Absence(NOW_MS, away, fresh).gone_until_ms(rules) == NOW_MS - away
    assert Absence(NOW_MS, fresh, away).old_until_ms(rules) == NOW_MS - away
    for ours, theirs in (
        (away, away),
        (fresh, fresh),
        (NEVER_SYNCED_MS, fresh),
        (away, NEVER_SYNCED_MS),
    ):
        told = Absence(NOW_MS, ours, theirs)
        assert told.gone_until_ms(rules) == told.old_until_ms(rules) == 0
    assert not Absence(NOW_MS, away, NEVER_SYNCED_MS).is_ended
    assert Absence(NOW_MS, NEVER_SYNCED_MS, NEVER_SYNCED_MS).is_ended
    assert Absence(NOW_MS, away, away).is_ended
