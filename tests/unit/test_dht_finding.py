"""Operations that look for something: when they have enough, what they believe, read repair."""

import base58

from dht.finding import (
    AGREE,
    REPAIRS_MAX,
    SPARE,
    FindClosest,
    FindPeer,
    FindProviders,
    FindValue,
    Start,
)
from dht.key import SPACE, Key, key_of
from dht.lookup import ALPHA, PATHS
from dht.messages import (
    Answer,
    Contact,
    Moment,
    Nodes,
    Providers,
    Provision,
    PutValue,
    Value,
    Values,
)
from dht.operation import SLOW_S, Wanted
from dht.table import K
from tests.unit.dht_still_net import EPOCH_MS, HANGING, HOSTILE, StillNet
from wire.ids import PeerId

OWN = PeerId("own")
NAME = b"/shoal/multi/name"
DAY_MS = 24 * 3600 * 1000
NOW = Moment(0.0, EPOCH_MS)


def value(
    seq: int = 1, *, name: bytes = NAME, author: str = "author", expires_ms: int = EPOCH_MS + DAY_MS
) -> Value:
    sealed = b"%s %s %d" % (name, author.encode(), seq)
    return Value(name, PeerId(author), seq, expires_ms, b"data", sealed)


def provision(
    peer: str, *, name: bytes = b"cid", expires_ms: int = EPOCH_MS + DAY_MS, sealed: bytes = b"-"
) -> Provision:
    return Provision(name, PeerId(peer), expires_ms, sealed)


def seeds(count: int, name: bytes = NAME) -> list[Contact]:
    """Contacts at distances 1, 2, 3… of a name."""
    return [
        Contact(PeerId(f"peer {n}"), Key(key_of(name) ^ n), ("/ip4/10.0.0.1/tcp/1",))
        for n in range(1, count + 1)
    ]


def get(
    count: int = 60, *, paths: int = 1, name: bytes = NAME, region: int | None = None
) -> FindValue:
    """By default, who is read to the end knows the region; else nobody is expected to hold it."""
    region = (100 if paths > 1 else 0) if region is None else region
    return FindValue(name, Start(OWN, seeds(count, name), NOW, region=region), paths=paths)


def give(operation: FindValue | FindProviders, wanted: list[Wanted], *answers: Answer) -> None:
    for one, answer in zip(wanted, answers, strict=False):
        operation.answered(one.tag, answer, NOW)


def puts(wanted: list[Wanted]) -> dict[str, Value]:
    return {
        str(one.contact.peer): one.request.value
        for one in wanted
        if isinstance(one.request, PutValue)
    }


# --- values --------------------------------------------------------------------------------------


def test_a_get_ends_when_five_of_the_nearest_say_the_same() -> None:
    operation = get()
    wanted = operation.next_asks(NOW)
    give(operation, wanted, *[Values((value(),), ())] * (AGREE - 1))
    wanted = wanted[AGREE - 1 :] + operation.next_asks(NOW)
    assert not operation.is_done
    give(operation, wanted, Values((value(),), ()))
    assert operation.next_asks(NOW) == []
    assert operation.is_done
    assert operation.result == (value(),)


def test_a_newer_value_starts_the_count_again() -> None:
    operation = get()
    wanted = operation.next_asks(NOW)
    give(operation, wanted, *[Values((value(1),), ())] * (AGREE - 1), Values((value(2),), ()))
    wanted = operation.next_asks(NOW)
    assert not operation.is_done
    give(operation, wanted, *[Values((value(2),), ())] * (AGREE - 1))
    operation.next_asks(NOW)
    assert operation.is_done
    assert operation.result == (value(2),)


def test_of_those_who_should_hold_it_no_more_are_asked_than_may_be_needed() -> None:
    operation = get(region=40)
    wanted = operation.next_asks(NOW)
    assert len(wanted) == AGREE + SPARE
    give(operation, wanted, *[Values((value(),), ())] * 3)
    assert operation.next_asks(NOW) == []
    operation.answered(wanted[3].tag, Values((), ()), NOW)  # one that lacks it
    operation.failed(wanted[4].tag, "unreachable", NOW)
    more = operation.next_asks(NOW)
    assert len(more) == 3  # for each of the two, and one since somebody failed
    slow = Moment(NOW.s + SLOW_S, EPOCH_MS)  # who is slow no longer counts
    assert len(operation.next_asks(slow)) == 4
    give(operation, more, *[Values((value(),), ())] * 2)
    operation.next_asks(slow)
    assert operation.is_done


def test_while_few_are_near_as_many_are_asked_as_ever() -> None:
    assert len(get(region=3).next_asks(NOW)) == ALPHA
    operation = FindValue(NAME, Start(OWN, seeds(60)[10:], NOW, region=3))
    assert len(operation.next_asks(NOW)) == ALPHA


def test_the_newest_of_each_author_is_found_in_pieces() -> None:
    a, b, old = value(author="a"), value(author="b"), value(0, author="a")
    operation = get(3)
    wanted = operation.next_asks(NOW)
    give(operation, wanted, Values((a,), ()), Values((b, old), ()), Values((), ()))
    repairs = operation.next_asks(NOW)
    assert operation.is_done
    assert operation.result == (a, b)
    sent = [(str(one.contact.peer), one.request) for one in repairs]
    assert sent == [
        ("peer 1", PutValue(b)), ("peer 2", PutValue(a)), ("peer 3", PutValue(a)),
        ("peer 3", PutValue(b)),
    ]  # fmt: skip


def test_what_has_expired_or_has_another_name_is_not_believed() -> None:
    operation = get(3)
    wrong = value(9, expires_ms=EPOCH_MS), value(9, name=b"/shoal/multi/other")
    give(operation, operation.next_asks(NOW), Values(wrong, ()), Values((value(),), ()), Nodes(()))
    operation.next_asks(NOW)
    assert operation.result == (value(),)


def test_a_public_key_proves_itself() -> None:
    name = b"/pk/hash"
    key = Value(name, None, 0, 1 << 53, b"key", b"key")
    operation = get(name=name)
    give(operation, operation.next_asks(NOW), Values((), ()), Values((key,), ()))
    operation.next_asks(NOW)
    assert operation.is_done
    assert operation.result == (key,)


def test_holders_without_the_newest_are_sent_it_as_the_get_ends() -> None:
    operation = get()
    wanted = operation.next_asks(NOW)
    others = [Values((), ()), Values((value(0),), ()), *[Values((value(1),), ())] * AGREE]
    give(operation, wanted, *others)
    repairs = operation.next_asks(NOW)
    assert operation.is_done
    assert puts(repairs) == {"peer 1": value(1), "peer 2": value(1)}
    assert operation.next_asks(NOW) == []  # once
    operation.answered(repairs[0].tag, Nodes(()), NOW)  # fire and forget
    operation.failed(repairs[1].tag, "timeout", NOW)


def test_who_is_far_is_not_sent_it() -> None:
    far = Contact(PeerId("far"), Key(key_of(NAME) ^ SPACE // 2), ("/ip4/10.0.0.1/tcp/1",))
    operation = FindValue(NAME, Start(OWN, [far], NOW))
    (one,) = operation.next_asks(NOW)
    operation.answered(one.tag, Values((), tuple(seeds(30))), NOW)
    give(operation, operation.next_asks(NOW), *[Values((value(),), ())] * AGREE)
    assert puts(operation.next_asks(NOW)) == {}


def test_who_turns_out_to_be_far_as_it_ends_is_not_sent_it_either() -> None:
    far = [
        Contact(PeerId(f"far {n}"), Key(key_of(NAME) ^ SPACE // 2 ^ n), ("/ip4/10.0.0.1/tcp/1",))
        for n in range(ALPHA)
    ]
    operation = FindValue(NAME, Start(OWN, far, NOW))
    wanted = operation.next_asks(NOW)
    others = [Values((value(),), ())] * AGREE
    give(operation, wanted, Values((), tuple(seeds(K))), Values((), ()), *others)
    repairs = operation.next_asks(NOW)
    assert operation.is_done
    assert repairs == []


def test_repairs_are_bounded() -> None:
    operation = get(K)
    values = tuple(value(author=f"author {n}") for n in range(60))
    wanted = operation.next_asks(NOW)
    give(operation, wanted, Values(values, ()), *[Values((), ())] * (ALPHA - 1))
    while not operation.is_done:
        wanted = operation.next_asks(NOW)
        if not operation.is_done:
            give(operation, wanted, *[Values((), ())] * len(wanted))
    assert len(wanted) == REPAIRS_MAX


def test_over_several_paths_the_whole_region_is_read_and_the_newest_wins() -> None:
    net = StillNet(500, groups=400)
    own = net.nearest(Key(0), 1)[0]
    region = SPACE // 500 * 25
    inside = [one for one in net.nearest(key_of(NAME), 60) if one.key ^ key_of(NAME) <= region]
    for contact in inside:
        net.members[contact.peer].values[NAME] = (value(1),)
    farthest = net.members[inside[-1].peer]
    farthest.values[NAME] = (value(2),)
    operation = FindValue(
        NAME, Start(own.peer, net.seeds(own, key_of(NAME)), NOW, region=region), paths=PATHS
    )
    net.run(operation)
    assert operation.result == (value(2),)
    healed = [one for one in inside if net.members[one.peer].values[NAME] == (value(2),)]
    assert len(healed) >= len(inside) - 2


def test_values_are_found_when_most_holders_are_dead_and_half_of_those_hang() -> None:
    net = StillNet(600)
    for contact in net.nearest(key_of(NAME), 25):
        net.members[contact.peer].values[NAME] = (value(),)
    net.kill(0.7)
    times = list[float]()
    for own in net.nearest(Key(1), 40):
        operation = FindValue(NAME, Start(own.peer, net.seeds(own, key_of(NAME)), NOW))
        times.append(net.run(operation))
        assert operation.result == (value(),)
    assert sorted(times)[37] <= 9.0  # three time-outs


# --- providers -----------------------------------------------------------------------------------


def providers(count: int = 60, *, paths: int = 1) -> FindProviders:
    return FindProviders(b"cid", Start(OWN, seeds(count, b"cid"), NOW), paths=paths)


def test_providers_end_when_five_in_a_row_knew_nobody_new() -> None:
    operation = providers()
    wanted = operation.next_asks(NOW)
    a, b = provision("a"), provision("b")
    told = [Providers((a,), ()), Providers((a, b), ()), *[Providers((b,), ())] * (AGREE - 2)]
    give(operation, wanted, *told)
    assert len(operation.next_asks(NOW)) == AGREE
    assert not operation.is_done
    give(operation, wanted[AGREE:], Providers((), ()), Providers((a,), ()))
    operation.next_asks(NOW)
    assert operation.is_done
    assert operation.result == (b, a)  # most told of b


def test_a_new_provider_starts_the_count_again() -> None:
    operation = providers()
    a, b = provision("a"), provision("b")
    first = operation.next_asks(NOW)
    give(operation, first, *[Providers((a,), ())] * (AGREE - 1), Providers((b,), ()))
    second = operation.next_asks(NOW)
    assert not operation.is_done
    give(operation, second, *[Providers((a, b), ())] * (AGREE - 2))
    assert operation.next_asks(NOW)
    give(operation, second[AGREE - 2 :], Providers((a,), ()))
    operation.next_asks(NOW)
    assert operation.is_done


def test_providers_of_several_paths_are_read_to_the_end() -> None:
    operation = providers(paths=2)
    asked = 0
    while not operation.is_done:
        wanted = operation.next_asks(NOW)
        asked += len(wanted)
        give(operation, wanted, *[Providers((provision("a"),), ())] * len(wanted))
    assert asked >= 2 * K


def test_a_provider_record_must_fit_and_live() -> None:
    operation = providers(3)
    wrong = provision("a", name=b"other"), provision("b", expires_ms=EPOCH_MS)
    unsigned = provision("c", expires_ms=0, sealed=b"")  # as other implementations send them
    newer, older = provision("d", expires_ms=EPOCH_MS + 9), provision("d", expires_ms=EPOCH_MS + 8)
    give(operation, operation.next_asks(NOW), Providers(wrong, ()), Providers((unsigned,), ()),
         Providers((newer, older), ()))  # fmt: skip
    operation.next_asks(NOW)
    assert operation.result == (unsigned, newer)


# --- peers and the nearest -----------------------------------------------------------------------


def test_a_peer_is_found_when_it_speaks_itself_and_its_newest_word_wins() -> None:
    name = b"\x00some peer"
    peer = PeerId(base58.b58encode(name).decode())
    old = Contact(peer, key_of(name), ("/ip4/10.0.0.2/tcp/1",), 1)
    new = Contact(peer, key_of(name), ("/ip4/10.0.0.3/tcp/1",), 2)
    operation = FindPeer(peer, Start(OWN, seeds(40, name), NOW))
    first, second, *_ = operation.next_asks(NOW)
    operation.answered(first.tag, Nodes((old,)), NOW)
    (itself,) = operation.next_asks(NOW)
    operation.answered(second.tag, Nodes((new,)), NOW)
    operation.answered(itself.tag, Nodes(()), NOW)
    operation.next_asks(NOW)
    assert operation.is_done
    assert operation.result is new


def test_a_peer_that_nobody_knows_is_none() -> None:
    net = StillNet(100)
    own = net.nearest(Key(0), 1)[0]
    peer = PeerId(base58.b58encode(b"nobody").decode())
    operation = FindPeer(peer, Start(own.peer, net.seeds(own, key_of(b"nobody")), NOW))
    net.run(operation)
    assert operation.result is None
    assert {hop.outcome for hop in operation.trace.hops} == {"answered"}


def test_a_peer_in_our_table_is_found_though_it_is_silent() -> None:
    net = StillNet(30)
    own, other = net.nearest(Key(0), 2)
    net.members[other.peer].kind = HANGING
    operation = FindPeer(other.peer, Start(own.peer, [other], NOW))
    net.run(operation)
    assert operation.result is other


def test_the_closest_with_a_region_are_all_of_it() -> None:
    net = StillNet(400)
    own = net.nearest(Key(0), 1)[0]
    region = SPACE // 400 * 25
    operation = FindClosest(
        b"name", Start(own.peer, net.seeds(own, key_of(b"name")), NOW, region=region), paths=PATHS
    )
    net.run(operation)
    inside = [
        one for one in net.nearest(key_of(b"name"), 60) if one.key ^ key_of(b"name") <= region
    ]
    found = {one.peer for one in operation.result}
    assert len(found & {one.peer for one in inside}) >= len(inside) - 2


def test_hostile_answers_do_not_stop_a_get_over_one_path() -> None:
    net = StillNet(500)
    net.bribe(0.2)
    for contact in net.nearest(key_of(NAME), 20):
        net.members[contact.peer].values[NAME] = (value(),)
    liars = {one.contact.peer for one in net.members.values() if one.kind == HOSTILE}
    for own in net.nearest(Key(1), 40):
        operation = FindValue(NAME, Start(own.peer, net.seeds(own, key_of(NAME)), NOW))
        net.run(operation)
        assert operation.result == (value(),)
    assert liars & set(net.to)
