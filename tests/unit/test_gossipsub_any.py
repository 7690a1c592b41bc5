"""Any sequence of events: the machine never raises, and everything it keeps is bounded."""

import random
from collections.abc import Callable

from hypothesis import given, settings
from hypothesis import strategies as st

from protocols.channels.effects import Effect, Send, Validate, Verdict
from protocols.channels.params import TopicLimits
from protocols.channels.pending import COPIES_MAX
from protocols.channels.wire import IHave, Prune, Rpc, Subscription, message
from tests.unit.gossipsub import ME, PEERS, Node, from_, sends

SMALL = {
    "seen_max": 8,
    "peers_max": 12,
    "topics_max": 3,
    "peer_topics_max": 3,
    "backoffs_max": 6,
    "cache_bytes": 60_000,
    "pending_max": 4,
    "pending_bytes": 60_000,
    "dont_wants": 10,
    "ihave_messages": 5,
    "ihave_ids": 10,
    "iwant_ids": 10,
    "iwant_bytes": 50_000,
    "announced_max": 3,
    "limits": TopicLimits(messages_per_s=5.0, burst=10.0),
}
TOPICS = ["news", "a", "b", "c", "d"]

topics = st.sampled_from(TOPICS)
peers = st.sampled_from(PEERS[:16])
items = st.builds(
    from_,
    st.sampled_from([ME, *PEERS[:4]]),
    st.integers(0, 12),
    st.sampled_from([b"", b"x", bytes(5000), bytes(20_000), bytes(70_000)]),
    topics,
)
odd = st.builds(message, author=st.binary(max_size=2), seqno=st.binary(max_size=2), topic=topics,
                data=st.just(b""))  # fmt: skip
names = st.one_of(items.map(lambda item: item.id), st.binary(max_size=3))


def some(
    strategy: st.SearchStrategy[object], most: int = 3
) -> st.SearchStrategy[tuple[object, ...]]:
    return st.lists(strategy, max_size=most).map(tuple)


rpcs = st.builds(
    Rpc,
    subscriptions=some(st.builds(Subscription, topics, st.booleans())),
    messages=some(st.one_of(items, odd)),
    ihave=some(st.builds(IHave, topics, some(names, 12))),
    iwant=some(names, 12),
    graft=some(topics),
    prune=some(st.builds(Prune, topics, st.integers(0, 1 << 31))),
    idontwant=some(names, 12),
)

Step = Callable[[Node], list[Effect]]


def up(peer: int, version: str, outbound: bool, address: str) -> Step:
    return lambda node: node.machine.peer_up(
        PEERS[peer], version, node.now, outbound=outbound, address=address
    )


steps = st.one_of(
    st.builds(
        up,
        st.integers(0, 15),
        st.sampled_from(["/meshsub/1.1.0", "/meshsub/1.2.0"]),
        st.booleans(),
        st.sampled_from(["", "203.0.113.7"]),
    ),
    st.builds(lambda peer, rpc: lambda node: node.hear(peer, rpc), peers, rpcs),
    st.builds(lambda peer, rpc: lambda node: node.hear(peer, rpc), peers, rpcs),
    st.builds(lambda peer: lambda node: node.machine.peer_down(peer, node.now), peers),
    st.builds(lambda peer: lambda node: node.machine.broke_framing(peer, node.now), peers),
    st.builds(lambda t: lambda node: node.machine.unsubscribe(t, node.now), topics),
    st.builds(
        lambda t: lambda node: node.machine.subscribe(t, node.now), st.sampled_from(TOPICS[:3])
    ),
    st.builds(lambda item: lambda node: node.machine.publish(item, node.now), items),
    st.builds(
        lambda name, verdict: lambda node: node.machine.validated(name, verdict, node.now),
        names,
        st.sampled_from(Verdict),
    ),
    st.builds(lambda seconds: lambda node: node.wait(seconds), st.sampled_from([0.01, 0.3, 5.0])),
)


def check(node: Node, effects: list[Effect]) -> None:
    """Everything is within its bounds, and what is sent makes sense."""
    machine, params = node.machine, node.params
    assert len(machine._peers) <= params.peers_max
    assert len(machine._seen) <= params.seen_max
    assert machine._cache.size_bytes <= params.cache_bytes
    assert len(machine._pending) <= params.pending_max
    assert machine._pending._size_bytes <= params.pending_bytes
    kept = [entry.copies for entry in machine._pending._entries.values()]
    assert all(len(copies) <= COPIES_MAX for copies in kept)
    size = sum(len(item.raw) for copies in kept for _, item in copies)
    assert machine._pending._size_bytes == size
    assert sum(machine._wanted._open.values()) == len(machine._wanted)
    for mesh in machine._meshes.values():
        assert mesh.members.keys() <= machine._peers.keys()
        assert len(mesh._backoffs) <= params.backoffs_max
    for peer, state in machine._peers.items():
        assert len(state.known) <= params.dont_wants
        assert len(state.topics) <= params.peer_topics_max
        assert all(peer in machine._subscribers._topics[topic] for topic in state.topics)
    assert machine._scores._records.keys() == machine._peers.keys()
    for peer, rpc in sends(effects):
        assert rpc != Rpc()
        assert peer != ME
    for effect in effects:
        assert not isinstance(effect, Send) or effect.peers
        assert not isinstance(effect, Validate) or effect.message.topic in machine._meshes


@settings(max_examples=150, deadline=None)
@given(st.lists(steps, max_size=60), st.integers(0, 3))
def test_any_sequence_of_events(script: list[Step], subscribed: int) -> None:
    node = Node(**SMALL)
    for topic in TOPICS[1:subscribed]:
        node.machine.subscribe(topic, 0.0)
    for step in script:
        check(node, step(node))
    check(node, node.wait(5))


@settings(max_examples=20, deadline=None)
@given(st.lists(steps, max_size=30))
def test_same_events_same_effects(script: list[Step]) -> None:
    def play() -> list[Effect]:
        node = Node(12)
        return [effect for step in script for effect in step(node)] + node.wait(3)

    assert play() == play()


def test_a_long_random_life_stays_within_bounds() -> None:
    """A thousand times what Hypothesis tries: true messages, lies and churn, in a second or two."""
    rng, node = random.Random(7), Node(**SMALL)
    pool = [from_(rng.choice(PEERS[:4]), n, bytes(rng.choice([1, 6000]))) for n in range(200)]
    for turn in range(6000):
        peer, item = rng.choice(PEERS[:16]), rng.choice(pool)
        match rng.randrange(8):
            case 0:
                effects = node.machine.peer_up(peer, "/meshsub/1.2.0", node.now, outbound=True)
            case 1 if turn % 3 == 0:
                effects = node.machine.peer_down(peer, node.now)
            case 2:
                effects = node.announce(peer, item.id, rng.randbytes(4))
            case 3:
                effects = node.hear(peer, Rpc(graft=("news",), iwant=(item.id,)))
            case 4:
                effects = node.hear(peer, Rpc(idontwant=(item.id,)))
            case 5:
                effects = node.wait(rng.random())
            case _:
                effects = node.tell(peer, item)
        check(node, effects)
