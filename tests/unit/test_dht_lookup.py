"""One lookup by script; and any lookup. What they cost and find: test_dht_lookup_costs."""

from dataclasses import replace

from base58 import b58encode
from hypothesis import given, settings
from hypothesis import strategies as st

from dht.candidates import GROUPS_MAX, PLACES_MAX, REGION_PER_GROUP, groups_of
from dht.key import SPACE, Key, key_of
from dht.lookup import ALPHA, PATHS, REGION_MAX, REQUESTS_MAX, Lookup
from dht.messages import Contact, FindNode, Moment, Nodes, Stored
from dht.operation import OPERATION_S, QUERY_S, SLOW_S, Wanted
from dht.table import K
from tests.unit.dht_still_net import EPOCH_MS, StillNet
from wire.ids import PeerId

OWN = PeerId("own")
TARGET = Key(0)  # so that a key is its distance
ASK = FindNode(b"whatever")


def at(key: int, *addrs: str, seq: int = 1) -> Contact:
    """Return a contact with this key, in nobody's address group unless told otherwise."""
    return Contact(PeerId(f"peer {key}"), Key(key), addrs or ("/ip4/10.0.0.1/tcp/1",), seq)


def moment(s: float = 0.0) -> Moment:
    return Moment(s, EPOCH_MS + int(1000 * s))


def begin(seeds: list[Contact], *, paths: int = 1, region: int = 0) -> Lookup:
    return Lookup(TARGET, OWN, ASK, seeds, moment(), paths=paths, region=region)


def keys(wanted: list[Wanted]) -> list[int]:
    return [one.contact.key for one in wanted]


def keys_of(lookup: Lookup) -> list[int]:
    return [one.key for one in lookup.result]


def answer_all(lookup: Lookup, wanted: list[Wanted], s: float = 0.0) -> None:
    for one in wanted:
        lookup.answered(one.tag, Nodes(()), moment(s))


def test_the_nearest_are_asked_first_and_only_alpha_at_a_time() -> None:
    lookup = begin([at(key) for key in range(100, 0, -1)])
    first = lookup.next_asks(moment())
    assert keys(first) == list(range(1, ALPHA + 1))
    assert lookup.next_asks(moment()) == []
    lookup.answered(first[3].tag, Nodes(()), moment(0.1))
    assert keys(lookup.next_asks(moment(0.1))) == [ALPHA + 1]


def test_who_was_told_an_old_address_is_asked_once_more_at_the_newer() -> None:
    old, new, newest = (at(1, f"/ip4/10.0.0.{seq}/tcp/1", seq=seq) for seq in (1, 2, 3))
    lookup = begin([old, at(2), at(3), at(4)])
    first, second, third, fourth = lookup.next_asks(moment())
    lookup.answered(second.tag, Nodes((new,)), moment())  # while it flies
    assert lookup.next_asks(moment()) == []
    lookup.failed(first.tag, "unreachable", moment())
    (again,) = lookup.next_asks(moment())
    assert again.contact is new
    lookup.failed(again.tag, "unreachable", moment())
    lookup.answered(third.tag, Nodes((newest,)), moment())  # once, for it may sign many
    assert lookup.next_asks(moment()) == []
    lookup.answered(fourth.tag, Nodes(()), moment())
    assert lookup.next_asks(moment()) == []
    assert keys_of(lookup) == [2, 3, 4]


def test_who_did_not_answer_is_asked_again_when_a_newer_word_comes() -> None:
    old, new = (at(1, f"/ip4/10.0.0.{seq}/tcp/1", seq=seq) for seq in (1, 2))
    lookup = begin([old, at(2)])
    first, second = lookup.next_asks(moment())
    lookup.failed(first.tag, "unreachable", moment())
    lookup.answered(second.tag, Nodes((new,)), moment())
    (again,) = lookup.next_asks(moment())
    lookup.answered(again.tag, Nodes(()), moment())
    assert keys_of(lookup) == [1, 2]


def test_it_ends_when_the_k_nearest_have_answered_and_returns_them() -> None:
    lookup = begin([at(key) for key in range(1, 60)])
    while not lookup.is_done:
        answer_all(lookup, lookup.next_asks(moment()))
    assert [one.key for one in lookup.result] == list(range(1, K + 1))
    assert lookup.requests == K


def test_an_answer_brings_nearer_ones_and_who_was_asked_is_not_asked_again() -> None:
    lookup = begin([at(1000), at(2000)])
    first, second = lookup.next_asks(moment())
    lookup.answered(first.tag, Nodes((at(5), at(1000), at(2000), at(0x77))), moment())
    assert keys(lookup.next_asks(moment())) == [5, 0x77]
    lookup.answered(first.tag, Nodes((at(3),)), moment())  # a second answer to the same request
    lookup.answered(99, Nodes((at(3),)), moment())  # an answer to nothing
    assert lookup.next_asks(moment()) == []
    assert second.contact.key == 2000


def test_we_do_not_ask_ourselves() -> None:
    ourselves = Contact(OWN, Key(1), ("/ip4/10.0.0.1/tcp/1",))
    lookup = begin([ourselves, at(2)])
    (one,) = lookup.next_asks(moment())
    lookup.answered(one.tag, Nodes((ourselves,)), moment())
    assert lookup.next_asks(moment()) == []
    assert lookup.is_done
    assert [contact.key for contact in lookup.result] == [2]


def test_without_seeds_it_ends_at_once() -> None:
    lookup = begin([])
    assert lookup.next_asks(moment()) == []
    assert lookup.is_done
    assert lookup.result == []
    assert lookup.hops == 0


def test_who_is_slow_no_longer_fills_a_place_but_is_waited_for() -> None:
    lookup = begin([at(key) for key in range(1, 40)])
    first = lookup.next_asks(moment())
    assert lookup.wake_at == SLOW_S
    assert lookup.next_asks(moment(SLOW_S - 0.01)) == []
    second = lookup.next_asks(moment(lookup.wake_at))
    assert keys(second) == list(range(ALPHA + 1, 2 * ALPHA + 1))
    rest = second
    while rest:  # all others answer; the first ones stay silent
        answer_all(lookup, rest, 0.6)
        rest = lookup.next_asks(moment(0.6))
    assert not lookup.is_done
    assert lookup.requests == K + ALPHA  # the k nearest beside those who are slow
    for one in first:
        lookup.failed(one.tag, "timeout", moment(QUERY_S))
    assert lookup.next_asks(moment(QUERY_S)) == []
    assert lookup.is_done
    assert [one.key for one in lookup.result] == list(range(ALPHA + 1, ALPHA + 1 + K))


def test_a_failure_adds_a_place() -> None:
    lookup = begin([at(key) for key in range(1, 400)])
    flying = lookup.next_asks(moment())
    lookup.failed(flying.pop().tag, "unreachable", moment())
    flying += lookup.next_asks(moment())
    assert len(flying) == ALPHA + 1
    for _ in range(50):
        lookup.failed(flying.pop(0).tag, "unreachable", moment())
        flying += lookup.next_asks(moment())
    assert len(flying) == K  # all of the nearest are in flight: no more are needed


def test_not_more_fly_than_there_are_places_however_many_failed() -> None:
    lookup = begin([at(key) for key in range(1, 400)], region=SPACE - 1)
    failed = 0
    while True:
        wanted = lookup.next_asks(moment())
        assert len(wanted) <= PLACES_MAX
        if failed >= 2 * PLACES_MAX and len(wanted) == PLACES_MAX:
            break  # in the region, after the k nearest have answered
        for one in wanted:
            if failed < 2 * PLACES_MAX:
                failed += 1
                lookup.failed(one.tag, "unreachable", moment())
            else:
                lookup.answered(one.tag, Nodes(()), moment())
        assert not lookup.is_done


def test_the_shortest_way_to_a_peer_counts_as_its_hops() -> None:
    lookup = begin([at(1000), at(2000)])
    first, second = lookup.next_asks(moment())
    lookup.answered(first.tag, Nodes((at(500),)), moment())
    (third,) = lookup.next_asks(moment())
    lookup.answered(third.tag, Nodes((at(5),)), moment())
    lookup.answered(second.tag, Nodes((at(5),)), moment())
    answer_all(lookup, lookup.next_asks(moment()))
    assert lookup.next_asks(moment()) == []
    assert lookup.hops == 2
    assert [hop.depth for hop in lookup.trace.hops] == [0, 0, 1, 1]


def test_who_answered_counts_though_it_fails_when_asked_about_itself() -> None:
    seeds = [replace(at(key), peer=PeerId(b58encode(b"%d" % key).decode())) for key in range(1, 31)]
    lookup = begin(seeds, region=10_000)  # a crowd: all of the k nearest in a thousandth of it
    asked = set[PeerId]()
    again = 0
    while not lookup.is_done:
        for one in lookup.next_asks(moment()):
            if one.contact.peer in asked:
                again += 1
                lookup.failed(one.tag, "timeout", moment())
            else:
                asked.add(one.contact.peer)
                lookup.answered(one.tag, Nodes(()), moment())
    assert again > 0
    assert len(lookup.close_set()) == 30


def test_a_refusal_is_a_failure_with_its_reason_in_the_trace() -> None:
    lookup = begin([at(1), at(2)])
    one, two = lookup.next_asks(moment())
    lookup.answered(one.tag, Stored(0, "too many requests"), moment(0.1))
    lookup.answered(two.tag, Nodes((at(7), at(8))), moment(0.2))
    for wanted in lookup.next_asks(moment(0.2)):
        lookup.failed(wanted.tag, "timeout", moment(3.2))
    assert [contact.key for contact in lookup.result] == [2]
    hops = lookup.trace.hops
    assert [hop.outcome for hop in hops] == [
        "refused: too many requests", "answered", "timeout", "timeout",
    ]  # fmt: skip
    assert [hop.depth for hop in hops] == [0, 0, 1, 1]
    assert [hop.closer for hop in hops] == [0, 2, 0, 0]
    assert [hop.bits for hop in hops] == [255, 254, 253, 252]
    assert hops[0].took_s == 0.1
    assert hops[2].began_s == 0.2


def test_what_flies_is_shown_as_flying() -> None:
    lookup = begin([at(1)])
    lookup.next_asks(moment())
    (hop,) = lookup.trace.hops
    assert (hop.outcome, hop.took_s) == ("flying", None)


def test_it_ends_at_its_deadline_with_what_it_has() -> None:
    lookup = begin([at(1), at(2)])
    one, _ = lookup.next_asks(moment())
    lookup.answered(one.tag, Nodes(()), moment(1))
    lookup.next_asks(moment(SLOW_S + 1))
    assert lookup.wake_at == OPERATION_S
    assert lookup.next_asks(moment(OPERATION_S)) == []
    assert lookup.is_done
    assert [contact.key for contact in lookup.result] == [1]


def test_liars_who_always_know_somebody_nearer_do_not_keep_it_going() -> None:
    nearer = iter(range(1 << 30, 0, -1))
    lookup = begin([at(next(nearer)) for _ in range(K)])
    while not lookup.is_done:
        for one in lookup.next_asks(moment()):
            lookup.answered(one.tag, Nodes(tuple(at(next(nearer)) for _ in range(K))), moment())
    assert lookup.requests == REQUESTS_MAX


def test_two_of_an_address_group_count_among_the_nearest() -> None:
    crowd = [at(key, f"/ip4/20.0.0.{key}/tcp/1") for key in range(1, 50)]
    others = [at(key, f"/ip4/20.1.{key}.1/tcp/1") for key in range(100, 140)]
    lookup = begin([*crowd, *others])
    while not lookup.is_done:
        answer_all(lookup, lookup.next_asks(moment()))
    assert [one.key for one in lookup.result] == [1, 2, *range(100, 118)]
    assert lookup.requests == K


def test_another_of_the_group_is_asked_when_one_has_failed() -> None:
    crowd = [at(key, f"/ip4/20.0.0.{key}/tcp/1") for key in range(1, 50)]
    lookup = begin(crowd)
    first, _ = lookup.next_asks(moment())
    lookup.failed(first.tag, "unreachable", moment())
    assert keys(lookup.next_asks(moment())) == [3]


def test_a_contact_counts_in_every_group_that_it_claims() -> None:
    def groups(*addrs: str) -> set[str]:
        return set(groups_of(at(1, *addrs)))

    here, there = "/ip4/20.0.0.1/tcp/1", "/ip6/2001:db8:1::1/tcp/1"
    assert groups("/ip4/10.0.0.1/tcp/1", here) == {"20.0.0.0/24"}
    assert groups(here, there) == {"20.0.0.0/24", "2001:db8:1::/48"}
    assert groups("/ip4/10.0.0.1/tcp/1", "/ip4/127.0.0.1/tcp/1") == set()
    many = [f"/ip4/20.0.{number}.1/tcp/1" for number in range(GROUPS_MAX + 1)]
    other = [f"/ip4/20.9.{number}.1/tcp/1" for number in range(GROUPS_MAX + 1)]
    assert groups(*many) == groups(*other) != set()
    assert groups_of(Contact(PeerId("nowhere"), Key(1))) == groups_of(at(1, "/dns4/a.b/tcp/1"))


def test_a_newer_word_of_where_a_peer_is_takes_the_place_of_hearsay() -> None:
    hearsay, word = at(1, "/ip4/10.0.0.2/tcp/1", seq=0), at(1, "/ip4/10.0.0.3/tcp/1", seq=9)
    lookup = begin([*(at(key) for key in range(2, 2 + ALPHA)), at(500), at(600)])
    first, second, *_ = lookup.next_asks(moment())
    lookup.answered(first.tag, Nodes((at(500, seq=9), hearsay)), moment())
    lookup.answered(second.tag, Nodes((word,)), moment())
    asked = lookup.next_asks(moment())
    assert asked[0].contact is word


def test_paths_share_no_peer_and_a_liar_misleads_only_his_own() -> None:
    seeds = [at(key) for key in range(1000, 1000 + 4 * K)]
    lookup = begin(seeds, paths=PATHS)
    lies = iter(range(1, 900))
    asked = list[int]()
    while not lookup.is_done:
        wanted = lookup.next_asks(moment())
        asked += keys(wanted)
        for one in wanted:
            key = one.contact.key
            is_liar = key % PATHS == 0 or key < 1000  # dealt to the first path, or a liar's friend
            told = [at(next(lies)) for _ in range(3)] if is_liar and len(asked) < 200 else []
            lookup.answered(one.tag, Nodes(tuple(told)), moment())
    assert len(asked) == len(set(asked))
    for path in range(1, PATHS):
        honest = {1000 + path + PATHS * number for number in range(K)}
        assert honest <= set(asked)  # the k nearest of each path answered
    own = {hop.path for hop in lookup.trace.hops if hop.depth > 0}
    assert own == {0}


def test_with_a_region_everybody_in_it_answers() -> None:
    lookup = begin([at(key) for key in range(1, 200)], region=50)
    while not lookup.is_done:
        answer_all(lookup, lookup.next_asks(moment()))
    assert {one.key for one in lookup.in_region()} == set(range(1, 51))
    assert len(lookup.close_set()) == 50
    assert lookup.requests >= 50


def test_of_a_region_that_is_too_full_a_bounded_number_is_asked() -> None:
    lookup = begin([at(key) for key in range(1, 900)], region=SPACE - 1)
    while not lookup.is_done:
        answer_all(lookup, lookup.next_asks(moment()))
    assert REGION_MAX <= lookup.requests <= REGION_MAX + K
    farthest = max(one.key for one in lookup.in_region())
    assert farthest > 2 * REGION_MAX  # nearness is no merit there


def test_ten_of_an_address_group_are_asked_in_a_region() -> None:
    crowd = [at(key, f"/ip4/20.0.0.{key}/tcp/1") for key in range(1, 45)]
    lookup = begin(crowd, region=SPACE - 1)
    while not lookup.is_done:
        answer_all(lookup, lookup.next_asks(moment()))
    assert [one.key for one in lookup.close_set()] == list(range(1, 11))
    assert lookup.requests == REGION_PER_GROUP == 10


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    dead=st.sampled_from([0.0, 0.2, 0.6]),
    hanging=st.sampled_from([0.0, 0.5, 1.0]),
    paths=st.integers(1, 5),
    is_regional=st.booleans(),
)
def test_any_network(
    seed: int, dead: float, hanging: float, paths: int, *, is_regional: bool
) -> None:
    """It ends in time, asks nobody twice, and returns only who answered, nearest first."""
    net = StillNet(120, seed, groups=60)
    own, *_ = (member.contact for member in net.members.values())
    net.kill(dead, hanging=hanging)
    name = b"name %d" % seed
    target = key_of(name)
    region = SPACE // 5 if is_regional else 0
    seeds = net.seeds(own, target)
    lookup = Lookup(
        target, own.peer, FindNode(name), seeds, moment(), paths=paths, region=region, salt=seed
    )
    assert net.run(lookup) <= OPERATION_S
    asked = [hop.peer for hop in lookup.trace.hops]
    assert len(asked) == len(set(asked))
    assert own.peer not in asked
    answered = {hop.peer for hop in lookup.trace.hops if hop.outcome == "answered"}
    for found in (lookup.result, lookup.close_set()):
        assert {contact.peer for contact in found} <= answered
        distances = [contact.key ^ target for contact in found]
        assert distances == sorted(distances)
    groups = [group for contact in lookup.result for group in groups_of(contact)]
    assert max((groups.count(group) for group in groups), default=0) <= 2
