"""What holds of the routing table whatever happens to it."""

from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from dht.diversity import PER_GROUP, group_of
from dht.key import Key, common_bits
from dht.messages import Contact
from dht.table import CHECK_S, FRESH_S, GROUP_MAX, Came, Table
from tests.unit.dht_one import key_at
from wire.ids import PeerId

K = 4
OWN = Key(0xA5 << 248)
HOSTS = ["10.0.0.1", "127.0.0.1", *(f"5.9.{net}.{host}" for net in range(4) for host in range(3))]
ADDRESSES = [*(f"/ip4/{host}/tcp/1" for host in HOSTS), "/dns4/a.example/tcp/1"]
POOL = [
    Contact(PeerId(f"peer-{bits}-{number}"), key_at(OWN, bits, number * 7919), (), 1)
    for bits in range(9)
    for number in range(8)
]
contacts, addresses = st.sampled_from(POOL), st.sampled_from(ADDRESSES)


class AnyTable(RuleBasedStateMachine):
    """Answers, failures and usefulness in any order, with a model of who has answered where."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.now_s = Table(OWN, k=K), 0.0
        self.places: dict[PeerId, str] = {}  # where it answered last
        self.failures = Counter[PeerId]()  # since it answered last
        self.told: dict[PeerId, Contact] = {}

    @rule(one=contacts, address=addresses, after_s=st.sampled_from([0.0, 1.0, FRESH_S]))
    def answers(self, one: Contact, address: str, after_s: float) -> None:
        self.now_s += after_s
        there = [entry for entry in self.table.entries() if _bits(entry.contact) == _bits(one)]
        stranger = one.peer not in self.table
        checks = self.table.answered(one, address, self.now_s)
        self.places[one.peer] = address
        self.failures[one.peer] = 0
        if stranger and len(there) == K:  # nobody goes for a newcomer
            assert all(entry.contact.peer in self.table for entry in there)
        for check in checks:
            (entry,) = (one for one in there if one.contact is check)
            assert len(there) == K
            assert self.now_s - entry.seen_s >= FRESH_S

    @rule(one=contacts)
    def answers_somewhere(self, one: Contact) -> None:
        was_there = one.peer in self.table
        assert self.table.answered(one, None, self.now_s) == []
        assert (one.peer in self.table) == was_there
        if was_there:
            self.failures[one.peer] = 0

    @rule(one=contacts)
    def fails(self, one: Contact) -> None:
        self.failures[one.peer] += 1
        self.table.failed(one.peer, self.now_s)
        assert one.peer not in self.table or self.failures[one.peer] < 2

    @rule(one=contacts)
    def is_useful(self, one: Contact) -> None:
        self.table.useful(one.peer, self.now_s)

    @precondition(lambda self: len(self.table) > 0)
    @rule(one=contacts, address=addresses)
    def wanted_strangers_fit_where_they_claim(self, one: Contact, address: str) -> None:
        claims = Contact(one.peer, one.key, (address,), one.seq)
        if not self.table.wants(claims):
            return
        there = [entry for entry in self.table.entries() if _bits(entry.contact) == _bits(one)]
        self.now_s += CHECK_S
        self.answers(claims, address, 0.0)
        assert one.peer in self.table or len(there) == K

    @invariant()
    def buckets_and_groups_are_within_their_limits(self) -> None:
        entries = self.table.entries()
        assert len(entries) == len(self.table) == len({one.contact.peer for one in entries})
        assert all(n <= K for n in Counter(_bits(one.contact) for one in entries).values())
        grouped = [(group_of(one.address), _bits(one.contact)) for one in entries]
        of_groups = Counter(pair for pair in grouped if pair[0] is not None)
        assert all(n <= PER_GROUP for n in of_groups.values())
        of_table = Counter(group for group, _ in grouped if group is not None)
        assert all(n <= GROUP_MAX for n in of_table.values())

    @invariant()
    def entries_are_where_they_answered_and_in_order(self) -> None:
        entries = self.table.entries()
        assert all(self.places[one.contact.peer] == one.address for one in entries)
        assert all(one.group == group_of(one.address) for one in entries)
        order = [(_bits(one.contact), one.seen_s) for one in entries]
        assert order == sorted(order)

    @invariant()
    def changes_tell_exactly_who_is_there(self) -> None:
        for change in self.table.changes():
            if isinstance(change, Came):
                assert change.contact.peer not in self.told
                self.told[change.contact.peer] = change.contact
            else:
                del self.told[change.contact.peer]
        assert set(self.told) == {one.contact.peer for one in self.table.entries()}


def _bits(contact: Contact) -> int:
    return common_bits(OWN, contact.key)


TestAnyTable = AnyTable.TestCase
TestAnyTable.settings = settings(max_examples=60, deadline=None)


@given(st.lists(contacts, max_size=60), st.integers(0, (1 << 256) - 1), st.integers(0, 40))
def test_closest_is_the_nearest_of_all_in_order(
    there: list[Contact], target: int, count: int
) -> None:
    table = Table(OWN)
    for one in there:
        table.answered(one, "/ip4/10.0.0.1/tcp/1", 0.0)
    expected = sorted(set(there), key=lambda one: one.key ^ target)[:count]
    assert table.closest(Key(target), count) == expected
