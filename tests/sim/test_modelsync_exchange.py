"""The data of an attempt between simulated members: exact results, alike everywhere, and faults."""

import numpy as np
import pytest
import trio
from trio.testing import MockClock

from protocols.modelsync.aggregate import aggregator_named, weighted_mean
from protocols.modelsync.codecs import Vector, codec_named
from protocols.modelsync.memory import Memory
from protocols.modelsync.neighbours import sources
from protocols.modelsync.news import Complete
from protocols.modelsync.sealing import commitment_of
from protocols.modelsync.shards import shard_range, weighted_shards
from protocols.modelsync.wire import Bound, Prepare, result_of
from shoal.learn.exact import mix, mix_row
from tests.sim.exchanges import Members, number_of
from wire.ids import PeerId

LARGE, SMALL = 2_400_000, 70_000  # elements: by bulk with up to 8 members, and not
MIXES = ["ring", "exponential", "complete", "pairs"]


def through(codec: str, vector: Vector, *, is_mean: bool = False) -> Vector:
    """What others decode."""
    named = codec_named(codec)
    encode = named.encode_mean if is_mean else named.encode
    return named.decode(encode(vector), len(vector))


@pytest.mark.parametrize("codec", ["float32", "bfloat16", "float16", "int8", "int4", "topk"])
@pytest.mark.parametrize(("elements", "by_bulk"), [(LARGE, True), (SMALL, True), (SMALL, False)])
async def test_all_get_the_same_bits_whatever_the_codec(
    autojump_clock: MockClock, nursery: trio.Nursery, codec: str, elements: int, by_bulk: bool
) -> None:
    members = Members(nursery, 3, elements, by_bulk=by_bulk)
    weights = [1.0, 2.5, 3.0]
    await members.run(members.prepare(codec=codec, weights=weights))
    members.apply()
    seen = [through(codec, vector) for vector in members.vectors]
    mean = weighted_mean(seen, weights)
    expected = through(codec, mean, is_mean=True)
    for node, ours in zip(members.nodes, seen, strict=True):
        assert np.array_equal(node.result, expected)
        assert np.array_equal(node.sent, ours)
    assert len({node.result.tobytes() for node in members.nodes}) == 1
    assert len({tuple(node.exchange.shards) for node in members.nodes if node.exchange}) == 1
    is_large = by_bulk and elements == LARGE and codec_named(codec).size is not None
    assert (members.meadow.transfers > 0) == is_large
    assert members.net.errors == []


@pytest.mark.parametrize(
    ("codec", "aggregator"), [("int4", "mean"), ("topk", "mean"), ("int4", "median")]
)
async def test_an_owner_owes_what_its_encoding_of_the_mean_has_lost(
    autojump_clock: MockClock, nursery: trio.Nursery, codec: str, aggregator: str
) -> None:
    """So that what all members have brought and what all have got differ by what they owe."""
    members = Members(nursery, 4, SMALL)
    weights = [1.0, 4.0, 3.0, 0.0]
    prepare = members.prepare(codec=codec, weights=weights)
    for node in members.nodes[1:]:
        node.wants_sent = True
    await members.run(prepare, aggregator=aggregator)
    members.apply()
    seen = [through(codec, vector) for vector in members.vectors[:3]]
    lost = weighted_mean(seen, weights[:3]) - members.nodes[0].result
    factors = [0.0, 8 / 4, 8 / 3] if aggregator == "mean" else [0.0] * 3
    for index, (ours, factor) in enumerate(zip(seen, factors, strict=True)):
        start, stop = shard_range(prepare.shards, index)
        expected = ours.copy()
        expected[start:stop] -= lost[start:stop] * np.float32(factor)
        assert np.array_equal(members.nodes[index].sent, expected)
    assert not members.nodes[3].sent.any()


@pytest.mark.parametrize("codec", ["float32", "int8"])
async def test_one_contribution_lies_where_the_mean_will(
    autojump_clock: MockClock,
    nursery: trio.Nursery,
    monkeypatch: pytest.MonkeyPatch,
    codec: str,
) -> None:
    """Memory of a node: the means, and of n - 2 members what they bring to its shard."""
    taken: list[int] = []
    take = Memory.take

    def noting(memory: Memory, size_bytes: int) -> memoryview:
        taken.append(size_bytes)
        return take(memory, size_bytes)

    monkeypatch.setattr(Memory, "take", noting)
    members = Members(nursery, 4, LARGE, by_bulk=True)
    await members.run(members.prepare(codec=codec))
    members.apply()
    expected = weighted_mean([through(codec, vector) for vector in members.vectors], [1.0] * 4)
    for node in members.nodes:
        assert np.array_equal(node.result, through(codec, expected, is_mean=True))
    size = codec_named(codec).size
    assert size is not None
    wholes = 1.5 if codec == "float32" else 2.5  # where float32 is sent from the buffer itself
    assert sum(taken) < 4 * wholes * size(LARGE) * 1.01


async def test_who_weighs_little_does_not_owe_more_than_among_equals(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    """Weights are what members claim: a huge one must not make the others shout the next time."""
    members = Members(nursery, 2, SMALL)
    members.nodes[0].wants_sent = True
    prepare = members.prepare(codec="int4", weights=[1.0, 1e6])
    await members.run(prepare)
    members.apply()
    ours, theirs = (through("int4", vector) for vector in members.vectors)
    lost = weighted_mean([ours, theirs], [1.0, 1e6]) - members.nodes[0].result
    ours[: prepare.shards[0]] -= 2 * lost[: prepare.shards[0]]
    assert np.array_equal(members.nodes[0].sent, ours)


@pytest.mark.parametrize("by_bulk", [True, False])
async def test_shards_may_be_of_any_size_also_none(
    autojump_clock: MockClock, nursery: trio.Nursery, by_bulk: bool
) -> None:
    members = Members(nursery, 4, LARGE, by_bulk=by_bulk)
    shards = [0, 4096, LARGE - 4096, 0]
    await members.run(members.prepare(shards=shards, weights=[1.0, 0.0, 1.0, 0.0]))
    members.apply()
    mean = weighted_mean([members.vectors[0], members.vectors[2]], [1.0, 1.0])
    for node in members.nodes:
        assert np.array_equal(node.result, mean)
    assert not members.nodes[1].sent.any()


@pytest.mark.parametrize("is_sealed", [False, True])
async def test_who_has_nothing_to_say_gets_zeros_from_all(
    autojump_clock: MockClock, nursery: trio.Nursery, is_sealed: bool
) -> None:
    members = Members(nursery, 2, SMALL)
    await members.run(members.prepare(weights=[0.0, 0.0], is_sealed=is_sealed))
    members.apply()
    assert not any(node.result.any() for node in members.nodes)


async def test_one_member_alone_has_its_own_mean(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    members = Members(nursery, 1, SMALL)
    await members.run(members.prepare())
    members.apply()
    assert np.array_equal(members.nodes[0].result, members.vectors[0])


@pytest.mark.parametrize("name", ["median", "trimmed", "clip:tau=auto", "flag"])
async def test_robust_aggregators_see_whole_shards(
    autojump_clock: MockClock, nursery: trio.Nursery, name: str
) -> None:
    aggregator = aggregator_named(name)
    members = Members(nursery, 3, LARGE, by_bulk=True)
    members.nodes[1].contribution *= np.float32(-1000)
    prepare = members.prepare()
    await members.run(prepare, aggregator=name)
    members.apply()
    assert len({node.result.tobytes() for node in members.nodes}) == 1
    first = prepare.shards[0]
    expected = aggregator([vector[:first] for vector in members.vectors], [1.0] * 3)
    assert np.array_equal(members.nodes[2].result[:first], expected)


@pytest.mark.parametrize("codec", ["float32", "int8", "topk"])
@pytest.mark.parametrize("elements", [LARGE, SMALL])
async def test_a_sealed_average_is_the_same_average(
    autojump_clock: MockClock, nursery: trio.Nursery, codec: str, elements: int
) -> None:
    members = Members(nursery, 3, elements, by_bulk=True)
    await members.run(members.prepare(codec=codec))
    members.apply()
    plain = members.nodes[0].result
    await members.run(members.prepare(codec=codec, is_sealed=True))
    members.apply()
    for node in members.nodes:
        assert np.array_equal(node.result, plain)


async def test_a_commitment_is_what_a_validator_computes(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    members = Members(nursery, 3, SMALL)
    prepare = members.prepare(codec="int8", is_sealed=True)
    mixed = members.prepare(codec="int8", is_sealed=True, topology="ring")
    for node in members.nodes:
        expected = commitment_of(codec_named("int8"), node.contribution, prepare.shards)
        assert await node.open(prepare).seal() == expected
        assert await node.open(mixed).seal() == expected


@pytest.mark.parametrize("topology", MIXES)
@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 7])
def test_weights_of_a_mix_are_doubly_stochastic_and_those_of_the_trainer(
    topology: str, count: int
) -> None:
    members = [f"peer{number}" for number in range(count)]
    for round_ in range(4):
        prepare = _prepare(members, topology, round_)
        rows = [sources(prepare, member) for member in range(count)]
        for member, row in enumerate(rows):
            assert sum(row.values()) == pytest.approx(1)
            assert member in row
            assert row == mix_row(topology, members, member, run="test", lane=2, round_=round_)
        for column in range(count):
            assert sum(row.get(column, 0) for row in rows) == pytest.approx(1)


def _prepare(members: list[str], topology: str, round_: int) -> Prepare:
    count, peers = len(members), [PeerId(member) for member in members]
    return Prepare(
        "test", round_, 0, peers[0], peers, [1.0] * count, [1] * count, "float32", bytes(32), count,
        lane=2, topology=topology,
    )  # fmt: skip


@pytest.mark.parametrize("topology", MIXES)
@pytest.mark.parametrize("count", [1, 2, 3, 5])
@pytest.mark.parametrize("elements", [LARGE // 4, SMALL])
async def test_a_mix_is_what_the_trainer_simulates(
    autojump_clock: MockClock, nursery: trio.Nursery, topology: str, count: int, elements: int
) -> None:
    members = Members(nursery, count, elements, by_bulk=True)
    prepare = members.prepare(topology=topology, is_sealed=True)
    await members.run(prepare)
    members.apply()
    for index, node in enumerate(members.nodes):
        row = mix_row(topology, prepare.members, index, run="test", lane=0, round_=3)
        assert np.array_equal(node.result, mix(members.vectors, [1.0] * count, row))
        assert node.exchange is not None
        assert len(node.exchange.shards) == count
    assert members.net.errors == []


async def test_in_a_mix_our_own_vector_is_exact_and_who_brings_nothing_is_left_out(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    members = Members(nursery, 4, SMALL)
    weights = [1.0, 0.0, 1.0, 1.0]
    prepare = members.prepare(topology="ring", codec="int8", is_sealed=True, weights=weights)
    await members.run(prepare)
    members.apply()
    seen = [through("int8", vector) for vector in members.vectors]
    own = members.vectors[0]
    assert np.array_equal(members.nodes[0].result, weighted_mean([own, seen[3]], [1 / 3, 1 / 3]))
    assert np.array_equal(
        members.nodes[1].result, weighted_mean([seen[0], seen[2]], [1 / 3, 1 / 3])
    )
    assert np.array_equal(members.nodes[3].sent, seen[3])


# -- adoption --------------------------------------------------------------------------------


def bound_of(members: Members) -> Bound:
    exchange = members.nodes[0].exchange
    assert exchange is not None
    prepare = exchange.prepare
    return Bound(
        prepare.attempt, prepare.proposer, result_of(exchange.shards), prepare.members,
        prepare.weights, prepare.shards, prepare.codec,
    )  # fmt: skip


@pytest.mark.parametrize("codec", ["float32", "int8", "topk"])
@pytest.mark.parametrize("lacking", [[0], [2], [0, 1, 3]])
async def test_who_lacks_a_bound_result_gets_its_bytes_from_who_holds_it(
    autojump_clock: MockClock, nursery: trio.Nursery, codec: str, lacking: list[int]
) -> None:
    members = Members(nursery, 4, LARGE // 2)
    await members.run(members.prepare(codec=codec))
    for node in members.nodes:
        assert node.exchange is not None
        node.held = node.exchange.held
    mean = np.empty(LARGE // 2, np.float32)
    expected = members.nodes[0].exchange
    assert expected is not None
    bound = bound_of(members)
    for number in lacking:
        members.nodes[number].held = None
    await members.run(members.prepare(codec=codec, attempt=1, adopt=bound))
    members.apply()
    expected.take(mean)
    for node in members.nodes:
        assert isinstance(node.events[-1], Complete)
        assert result_of(node.events[-1].shards) == bound.result
        assert np.array_equal(node.result, mean)
        assert np.array_equal(node.sent, through(codec, node.contribution))


async def test_of_a_mix_who_lacks_its_own_result_keeps_its_vector(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    members = Members(nursery, 3, SMALL)
    await members.run(members.prepare(topology="ring", is_sealed=True))
    bound = bound_of(members)
    for node in members.nodes[1:]:
        assert node.exchange is not None
        node.held = node.exchange.held
    adopting = members.prepare(topology="ring", is_sealed=True, attempt=1, adopt=bound)
    await members.run(adopting)
    members.apply()
    assert np.array_equal(members.nodes[0].result, members.vectors[0])
    mean = weighted_mean(members.vectors, [1 / 3] * 3)
    assert np.array_equal(members.nodes[1].result, mean)


async def test_if_nobody_has_what_is_to_be_adopted_its_proposer_is_to_blame(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    members = Members(nursery, 3, SMALL)
    await members.run(members.prepare())
    await members.run(members.prepare(attempt=1, adopt=bound_of(members)), within_s=30)
    proposer = number_of(members.nodes[0].peer)
    assert members.nodes[1].faults == {(proposer, "silent")}


async def test_bytes_are_counted_by_peer(autojump_clock: MockClock, nursery: trio.Nursery) -> None:
    members = Members(nursery, 3, LARGE, by_bulk=True)
    prepare = members.prepare()
    assert prepare.shards == weighted_shards(LARGE, [0] * 3, [True] * 3)
    await members.run(prepare)
    exchange = members.nodes[0].exchange
    assert exchange is not None
    mine, theirs = 4 * prepare.shards[0], 4 * prepare.shards[1]
    assert exchange.bytes_by_peer[members.nodes[1].peer][0] == mine + theirs
    assert exchange.bytes_in == 2 * mine + 4 * (prepare.shards[1] + prepare.shards[2])
    assert exchange.bytes_out <= exchange.bytes_in
