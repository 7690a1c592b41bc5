"""Routes: the least time over (node, block), against every route that there is."""

import itertools
import random
import time
from collections import Counter
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocols.sharding.route import (
    FULL_S,
    HOP_S,
    NEAR_SHARE,
    Candidate,
    NoRoute,
    RouteHop,
    choose_codec,
    find_route,
    kept_codec,
)
from wire.ids import PeerId

ENTRY = PeerId("entry")
A, B, C, D = (PeerId(name) for name in "abcd")


def route(layers: int, candidates: list[Candidate], **options: object) -> list[RouteHop]:
    said: dict[str, object] = {"tokens": 20, "prompt_tokens": 10, "rng": random.Random(0)}
    return find_route(layers, candidates, entry=ENTRY, **{**said, **options})  # type: ignore[arg-type]


def spans(hops: list[RouteHop]) -> list[tuple[str, int, int]]:
    return [(hop.peer, hop.start, hop.end) for hop in hops]


def cost(hops: list[tuple[Candidate, int, int]], *, tokens: int, prompt_share: float) -> float:
    """What a route costs, written down anew."""
    total = 0.0
    at: Candidate | None = None
    for candidate, start, end in hops:
        slow = 1 + candidate.penalty
        rtt = candidate.delays[ENTRY] if at is None else at.delays[candidate.peer]
        if at is not None and at.peer == candidate.peer:
            rtt = 0.0
        total += (rtt / 2 + HOP_S) * slow + (FULL_S if candidate.free_tokens < tokens else 0)
        whole_s = candidate.decode_s + candidate.prefill_s * prompt_share
        total += slow * whole_s * (end - start) / (candidate.end - candidate.start)
        at = candidate
    assert at is not None
    return total + at.delays[ENTRY] / 2


def every_route(
    layers: int, candidates: list[Candidate], at: int = 0
) -> Iterator[list[tuple[Candidate, int, int]]]:
    if at == layers:
        yield []
    for candidate in candidates:
        if candidate.start <= at < candidate.end:
            for end in range(at + 1, min(candidate.end, layers) + 1):
                for rest in every_route(layers, candidates, end):
                    if not rest or rest[0][0] is not candidate:
                        yield [(candidate, at, end), *rest]


@st.composite
def swarms(draw: st.DrawFn) -> list[Candidate]:
    peers = [PeerId(f"p{index}") for index in range(draw(st.integers(1, 4)))]
    rtts = {
        frozenset(pair): draw(st.floats(0.0, 0.2))
        for pair in itertools.combinations([ENTRY, *peers], 2)
    }
    found: list[Candidate] = []
    for peer in peers:
        start = draw(st.integers(0, 3))
        delays = {
            other: rtts[frozenset((peer, other))] for other in [ENTRY, *peers] if other != peer
        }
        found.append(
            Candidate(
                peer,
                start,
                draw(st.integers(start + 1, 4)),
                decode_s=draw(st.floats(0.001, 0.1)),
                prefill_s=draw(st.floats(0.0, 0.01)),
                free_tokens=draw(st.sampled_from([10, 1000])),
                delays=delays,
                penalty=draw(st.sampled_from([0.0, 0.0, 1.5])),
            )
        )
    return found


@settings(max_examples=150, deadline=None)
@given(swarms(), st.integers(0, 1000))
def test_a_route_costs_what_the_best_of_all_costs_or_little_more(
    candidates: list[Candidate], seed: int
) -> None:
    every = list(every_route(4, candidates))
    if not every:
        with pytest.raises(NoRoute):
            route(4, candidates)
        return
    found = route(4, candidates, tokens=30, prompt_tokens=20, rng=random.Random(seed))
    assert [hop.start for hop in found] == [0, *(hop.end for hop in found[:-1])]
    assert found[-1].end == 4
    by_peer = {candidate.peer: candidate for candidate in candidates}
    used = [(by_peer[hop.peer], hop.start, hop.end) for hop in found]
    least = min(cost(one, tokens=30, prompt_share=2.0) for one in every)
    assert cost(used, tokens=30, prompt_share=2.0) <= least * (1 + NEAR_SHARE) + 1e-9


def near(peer: PeerId, start: int, end: int, decode_s: float = 0.01, **more: object) -> Candidate:
    delays = dict.fromkeys((ENTRY, A, B, C, D), 0.01)
    return Candidate(peer, start, end, decode_s, delays=delays, **more)  # type: ignore[arg-type]


def test_a_route_leaves_a_slow_span_in_its_middle() -> None:
    found = route(8, [near(A, 0, 6, 0.6), near(B, 2, 8, 0.06)])
    assert spans(found) == [("a", 0, 2), ("b", 2, 8)]
    assert found[0].decode_s == pytest.approx(0.2)


def test_missing_blocks_are_named() -> None:
    with pytest.raises(NoRoute, match=r"blocks 2-4, 7-8$"):
        route(8, [near(A, 0, 2), near(B, 4, 7), near(C, 0, 8)], without=[C])
    with pytest.raises(NoRoute, match=r"blocks 0-2$"):
        route(2, [])


def test_who_is_banned_or_full_is_passed_by() -> None:
    quick, slow = near(A, 0, 4, penalty=float("inf")), near(B, 0, 4, 0.5)
    assert spans(route(4, [quick, slow])) == [("b", 0, 4)]
    assert spans(route(4, [near(A, 0, 4, free_tokens=19), slow])) == [("b", 0, 4)]
    assert spans(route(4, [near(A, 0, 4, free_tokens=19)])) == [("a", 0, 4)]


def test_the_prompt_weighs_as_much_as_it_is_long() -> None:
    decodes, prefills = near(A, 0, 4, 0.02, prefill_s=0.01), near(B, 0, 4, 0.06, prefill_s=0.001)
    assert spans(route(4, [decodes, prefills], tokens=110, prompt_tokens=10))[0][0] == "a"
    assert spans(route(4, [decodes, prefills], tokens=110, prompt_tokens=100))[0][0] == "b"


def test_a_part_is_routed_between_the_nodes_beside_it() -> None:
    far = {ENTRY: 0.001, A: 0.3, D: 0.3}
    close = {ENTRY: 0.3, A: 0.001, D: 0.001}
    candidates = [
        Candidate(B, 0, 8, 0.01, delays=far),
        Candidate(C, 2, 6, 0.01, delays=close),
    ]
    part = route(8, candidates, start=3, end=5, previous=A, following=D)
    assert spans(part) == [("c", 3, 5)]
    assert part[0].codec == "float32"  # the link to d is fast; the last of all gives picks
    assert route(8, candidates, start=3)[-1].codec == "picks"


def test_equal_replicas_are_chosen_by_load_and_by_what_we_sent() -> None:
    loads = {A: 0.1, B: 0.9, C: 0.5}
    equal = [near(peer, 0, 4, load=load) for peer, load in loads.items()]
    rng = random.Random(1)
    found = Counter(route(4, equal, rng=rng)[0].peer for _ in range(900))
    # of two at random the less loaded: 5/9, 3/9, 1/9
    assert 440 < found[A] < 560
    assert 60 < found[B] < 140
    sent = Counter(route(4, equal, rng=rng, sent_lately={A: 10})[0].peer for _ in range(900))
    assert 60 < sent[A] < 140


def test_codecs_follow_the_links() -> None:
    assert choose_codec("int8", "float32", 0.0) == "int8"
    assert choose_codec("auto", "bfloat16", 0.0) == "bfloat16"
    assert choose_codec("auto", "float32", 0.0099) == "float32"
    assert choose_codec("auto", "float32", 0.010) == "float16"


@pytest.mark.parametrize(
    ("links", "kept"),
    [
        ([], "float32"),
        (["float16"], "float16"),
        (["float16", "float16"], "float16"),
        (["float16", "float32"], "float32"),
    ],
)
def test_links_that_a_failover_adds_are_as_lossy_as_all_others_or_not_at_all(
    links: list[str], kept: str
) -> None:
    hops = [RouteHop(A, 0, 1, codec) for codec in [*links, "picks"]]
    assert kept_codec(hops, "auto", "float32") == kept
    assert kept_codec(hops, "int8", "float32") == "int8"


def test_a_large_swarm_is_routed_quickly() -> None:
    rng = random.Random(3)
    peers = [PeerId(f"p{index}") for index in range(200)]
    candidates: list[Candidate] = []
    for peer in peers:
        start = rng.randrange(0, 80)
        delays = {other: rng.uniform(0.001, 0.2) for other in rng.sample(peers, 16)}
        delays[ENTRY] = rng.uniform(0.001, 0.2)
        candidates.append(Candidate(peer, start, start + 20, rng.uniform(0.01, 0.1), delays=delays))
    candidates.append(Candidate(PeerId("all"), 0, 100, 2.0))
    began = time.process_time()
    assert route(100, candidates)[-1].end == 100
    assert time.process_time() - began < 1.0  # about 0.1 s: seen once per answer
