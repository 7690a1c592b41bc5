"""The Merkle tree over keys: its shape, its roots, its proofs, and what forging them would take."""

import hashlib
from collections.abc import Iterator
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crdt import tree
from crdt.tree import (
    BATCH_MAX,
    BUCKET_MAX,
    EMPTY,
    Leaf,
    Path,
    StateTree,
    content_of,
    faults_digest,
    place_of,
    root_by,
    state_root,
)
from wire import codec
from wire.errors import BadMessage

Held = dict[str, tuple[bytes, ...]]
KEYS = tuple(f"run/{number}" for number in range(80))


def an_id(number: int) -> bytes:
    return hashlib.sha256(number.to_bytes(4)).digest()


def naive_root(held: Held) -> bytes:
    """The tree as the specification says it, written a second time: bits as text, no caches."""

    def sub_tree(rows: list[tuple[str, str]], depth: int) -> bytes:
        if not rows:
            return hashlib.sha256(b"crdt/tree/1\0").digest()
        if len(rows) == 1:
            bits, key = rows[0]
            ids = hashlib.sha256(b"".join(sorted(held[key]))).digest()
            return hashlib.sha256(b"\0" + int(bits, 2).to_bytes(32) + ids).digest()
        halves = [sub_tree([r for r in rows if r[0][depth] == bit], depth + 1) for bit in "01"]
        return hashlib.sha256(bytes([1, depth]) + b"".join(halves)).digest()

    digests = {key: hashlib.sha256(key.encode()).digest() for key in held if held[key]}
    return sub_tree([(f"{int.from_bytes(d):0256b}", key) for key, d in digests.items()], 0)


def tree_of(held: Held) -> StateTree:
    one = StateTree(lambda key: held.get(key, ()))
    for key in held:
        one.touch(key)
    return one


def crowd(count: int) -> Held:
    return {f"k/{number}": (an_id(number),) for number in range(count)}


changes = st.lists(
    st.tuples(st.sampled_from(KEYS), st.integers(0, 3), st.integers(0, 4)), max_size=200
)


@given(changes)
def test_a_root_is_that_of_a_naive_computation_after_any_changes(
    steps: list[tuple[str, int, int]],
) -> None:
    held: Held = {}
    one = StateTree(lambda key: held.get(key, ()))
    for key, count, then in steps:
        held[key] = tuple(an_id(number) for number in range(count))
        one.touch(key)
        if then == 0:
            assert one.root() == naive_root(held)
        elif then == 1:
            one.settle(3)
    assert one.root() == naive_root(held)
    assert len(one) == sum(1 for ids in held.values() if ids)


@given(st.permutations(KEYS), st.sets(st.sampled_from(KEYS)))
def test_a_root_does_not_depend_on_order_or_on_what_was_there_before(
    order: list[str], gone: set[str]
) -> None:
    everything: Held = {key: (an_id(len(key)), an_id(7)) for key in KEYS}
    one = tree_of({key: everything[key] for key in order})
    live = dict(everything)
    other = tree_of(live)
    other.root()
    for key in gone:
        del live[key]
        other.touch(key)
    other.root()
    for key in gone:
        live[key] = everything[key][::-1]
        other.touch(key)
    assert one.root() == other.root()


@pytest.mark.parametrize("count", [0, 1, BUCKET_MAX, BUCKET_MAX + 1, 3_000])
def test_crowds_that_come_and_go_leave_nothing_behind(count: int) -> None:
    held = crowd(count)
    one = tree_of(held)
    assert one.root() == naive_root(held)
    for key in tuple(held):
        del held[key]
        one.touch(key)
    assert one.root() == EMPTY
    assert len(one) == 0
    assert nodes_of(one) == 1


def nodes_of(one: StateTree) -> int:
    def count(node: tree._Node) -> int:  # pyright: ignore[reportPrivateUsage]
        return 1 if node.keys is not None else 1 + sum(map(count, node.halves()))

    return count(one._top)  # pyright: ignore[reportPrivateUsage]


def test_settling_in_small_steps_ends_bounded_and_at_the_same_root(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[str] = []
    held = crowd(2_000)

    def ids_at(key: str) -> tuple[bytes, ...]:
        asked.append(key)
        return held.get(key, ())

    one = StateTree(ids_at)
    for key in held:
        one.touch(key)
    steps = 0
    while True:
        asked.clear()
        steps += 1
        if one.settle(50):
            break
        assert len(asked) <= 50 + BUCKET_MAX
    assert 4_000 / 70 < steps < 4_000 / 40
    asked.clear()
    assert one.root() == naive_root(held)
    assert asked == []  # nothing was left to do
    monkeypatch.setattr(tree, "BATCH_MAX", 7)
    assert tree_of(held).root() == one.root()
    assert BATCH_MAX > 7


def test_one_change_hashes_one_bucket_again() -> None:
    asked: list[str] = []
    held = crowd(3_000)

    def ids_at(key: str) -> tuple[bytes, ...]:
        asked.append(key)
        return held[key]

    one = StateTree(ids_at)
    for key in held:
        one.touch(key)
    before = one.root()
    asked.clear()
    held["k/7"] = (an_id(0),)
    one.touch("k/7")
    assert one.root() not in (before, EMPTY)
    assert len(asked) <= BUCKET_MAX + 1


# Proofs


@given(st.integers(0, 300), st.integers(0, 400))
def test_every_key_has_a_proof_and_every_other_one_of_absence(count: int, number: int) -> None:
    held = crowd(count)
    one = tree_of(held)
    key = f"k/{number}"
    path = one.path(key)
    ids = held.get(key, ())
    assert root_by(key, ids, path) == one.root() == naive_root(held)
    assert (path.other is None) or not ids
    for wrong in ((), (an_id(number + 1),), (*ids, an_id(1_000_000))):
        if wrong != ids:
            assert not shows(one.root(), key, wrong, path)
    assert not shows(one.root(), "k/x", ids, path) or not ids


def shows(root: bytes, key: str, ids: tuple[bytes, ...], path: Path) -> bool:
    try:
        return root_by(key, ids, path) == root
    except BadMessage:
        return False


def real_nodes(held: Held) -> Iterator[tuple[bytes, Leaf | None]]:
    """Every hash that occurs in a tree, as its own paths show them."""
    one = tree_of(held)
    yield one.root(), None
    for key, ids in held.items():
        path = one.path(key)
        yield from ((half, None) for half in path.siblings)
        leaf = Leaf(place_of(key), content_of(ids))
        yield hashlib.sha256(b"\0" + leaf.place + leaf.content).digest(), leaf


def test_no_path_of_real_nodes_denies_a_key_that_is_there_or_invents_one() -> None:
    held = crowd(6)
    one = tree_of(held)
    nodes = list(real_nodes(held))
    hashes = sorted({node for node, _ in nodes} | {b"", EMPTY})
    leaves = [None, *(leaf for _, leaf in nodes if leaf is not None)]
    contents: list[tuple[bytes, ...]] = [(), *held.values()]
    tried = 0
    for key in (*held, "k/away"):
        for depth in range(4):
            for siblings, other in product(product(hashes, repeat=depth), leaves):
                if depth == 3 and other is not None:
                    continue  # 200,000 more of the same; depth 3 is tried without it
                path = Path(tuple(siblings), other)
                tried += 1
                for ids in contents:
                    if shows(one.root(), key, ids, path):
                        assert ids == held.get(key, ())
                        assert path == one.path(key)
    assert tried > 20_000


def test_a_path_has_one_form() -> None:
    held = crowd(40)
    one = tree_of(held)
    for number in range(80):
        key = f"k/{number}"
        path, ids = one.path(key), held.get(key, ())
        in_full = tuple(half or EMPTY for half in path.siblings)
        for siblings in {in_full, (*path.siblings, b""), (*path.siblings, EMPTY)}:
            if siblings != path.siblings:
                assert not shows(one.root(), key, ids, Path(siblings, path.other))
    with pytest.raises(BadMessage, match="not a hash"):
        root_by("k/1", (), Path((bytes(31),)))
    with pytest.raises(BadMessage, match="fork of one side"):
        root_by("k/1", (an_id(1),), Path((b"",)))


def test_an_absence_needs_a_leaf_on_the_way_and_of_another_key() -> None:
    held = crowd(2)
    one = tree_of(held)
    own = Leaf(place_of("k/1"), content_of(held["k/1"]))
    with pytest.raises(BadMessage, match="not on the key's way"):
        root_by("k/1", (), Path(one.path("k/1").siblings, own))
    first = place_of("k/1")
    across = Leaf(bytes([first[0] ^ 0x80]) + first[1:], bytes(32))
    with pytest.raises(BadMessage, match="not on the key's way"):
        root_by("k/1", (), Path((bytes(32),), across))
    with pytest.raises(BadMessage, match="in its stead"):
        root_by("k/1", held["k/1"], Path((), across))


def test_paths_are_short_and_grow_by_what_an_attacker_ground(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    held = crowd(4_000)
    one = tree_of(held)
    sizes = [len(codec.encode(one.path(f"k/{number}"))) for number in range(5_000)]
    assert max(sizes) < 26 * 34 + 70  # 12 bits name 4,000 keys; the closest pair shares about 24
    ground = {f"x{number}": bytes(24) + number.to_bytes(8) for number in range(500)}

    def ground_place(key: str) -> bytes:
        return ground.get(key) or place_of(key)

    monkeypatch.setattr(tree, "place_of", ground_place)
    for key in ground:
        held[key] = (an_id(1),)
        one.touch(key)
    root = one.root()
    path = one.path("x77")
    assert 192 < len(path.siblings) <= 256
    assert root_by("x77", held["x77"], path) == root
    assert len(codec.encode(path)) < 256 * 2 + 30 * 32


def test_the_state_root_binds_the_namespace_the_tree_and_the_faults() -> None:
    a, b, c = (an_id(number) for number in range(3))
    faults = [(bytes(16), 5, a), (bytes([1] * 16), 1, b)]
    digest = faults_digest(faults)
    assert digest == faults_digest(reversed(faults))
    assert len({faults_digest(faults[:count]) for count in range(3)}) == 3
    assert faults_digest([(bytes(16), 6, a)]) != faults_digest([(bytes(16), 5, a)])
    roots = {state_root(*three) for three in ((a, b, c), (a, c, b), (b, a, c), (a, b, digest))}
    assert len(roots) == 4
