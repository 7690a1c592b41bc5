"""Sizes and times of the tree over keys and of proof documents.

`python -m tests.soak.crdt_proofs` prints them for 100,000 keys and takes about half a minute;
`--million` adds the tree alone at a million keys (another half a minute, 0.4 GB).
"""

import argparse
import gc
import hashlib
import statistics
import time
import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass, fields

from crdt.namespace import Genesis, Rules
from crdt.proof import prove, verify
from crdt.replica import Replica
from crdt.tree import StateTree, root_by
from tests.unit.crdt_making import NOW_MS, Chain, signer
from wire import codec

SLICE = 300  # keys per `settle`, about a millisecond
LARGE = 3_000  # entries at one key, about what a document can carry
SAMPLE = 2_000  # keys whose paths are measured


@dataclass(frozen=True)
class TreeFigures:
    """What a tree over `keys` costs. Sizes are of encoded paths."""

    keys: int
    touch_us: float
    load_s: float
    slices_s: float
    slice_median_ms: float
    slice_worst_ms: float
    change_1_ms: float
    change_10_ms: float
    memory_mb: float
    memory_peak_mb: float
    path_median_bytes: int
    path_max_bytes: int
    absence_max_bytes: int
    check_us: float


Held = dict[str, tuple[bytes, ...]]


def an_id(number: int) -> bytes:
    """Return 32 bytes that stand for an entry."""
    return hashlib.sha256(number.to_bytes(8)).digest()


def timed(work: Callable[[], object]) -> float:
    """Return how many seconds it took."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def touch_all(held: Held) -> StateTree:
    """Return a tree that has heard of every key and hashed none."""
    tree = StateTree(lambda key: held.get(key, ()))
    for key in held:
        tree.touch(key)
    return tree


def slices_of(tree: StateTree) -> list[float]:
    """Settle in small steps; returns the seconds of each."""
    took: list[float] = []
    is_done = False
    while not is_done:
        start = time.perf_counter()
        is_done = tree.settle(SLICE)
        took.append(time.perf_counter() - start)
    return took


def memory_of(held: Held) -> tuple[float, float]:
    """Return the megabytes that a settled tree holds, and that settling took at most."""
    gc.collect()
    tracemalloc.start()
    tree = touch_all(held)
    tree.root()
    kept, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return kept / 1e6, peak / 1e6


def changed(tree: StateTree, held: Held, count: int) -> float:
    """Return the seconds of a root after `count` changes, the median of 20 times."""
    keys = list(held)
    took: list[float] = []
    for turn in range(20):
        for number in range(count):
            key = keys[(turn * 7919 + number * 104_729) % len(keys)]
            held[key] = (an_id(turn * count + number),)
            tree.touch(key)
        took.append(timed(tree.root))
    return statistics.median(took)


def tree_figures(count: int) -> TreeFigures:
    """Measure a tree over `count` keys of one entry each."""
    held: Held = {f"run/{number:07d}": (an_id(number),) for number in range(count)}
    memory = memory_of(held)
    slices = slices_of(touch_all(held))
    touch_s = timed(lambda: touch_all(held))
    tree = touch_all(held)
    load_s = timed(tree.root)
    keys = list(held)[:: max(1, count // SAMPLE)]
    paths = {key: tree.path(key) for key in keys}
    absent = [tree.path(f"{key}/absent") for key in keys]
    sizes = [len(codec.encode(path)) for path in paths.values()]
    check_s = timed(lambda: [root_by(key, held[key], path) for key, path in paths.items()])
    return TreeFigures(
        count,
        touch_s / count * 1e6,
        load_s,
        sum(slices),
        statistics.median(slices) * 1e3,
        max(slices) * 1e3,
        changed(tree, held, 1) * 1e3,
        changed(tree, held, 10) * 1e3,
        *memory,
        int(statistics.median(sizes)),
        max(sizes),
        max(len(codec.encode(path)) for path in absent),
        check_s / len(keys) * 1e6,
    )


@dataclass(frozen=True)
class ProofFigures:
    """What proofs of a namespace of `keys` registers cost, and that of a set of `LARGE` entries."""

    keys: int
    register_bytes: int
    absence_bytes: int
    root_after_put_ms: float
    prove_ms: float
    verify_ms: float
    large_entries: int
    large_bytes: int
    large_prove_ms: float
    large_verify_ms: float


def filled(count: int) -> tuple[Replica, Chain]:
    """Return a replica of `count` registers by one author, and its chain."""
    rules = Rules(author_entries=1_000_000)
    replica = Replica(Genesis(1, "soak", None, "open", b"", rules))
    chain = Chain(namespace=replica.id, ms=-count - LARGE)
    for number in range(count):
        replica.merge(chain.put(f"run/{number:07d}", number), NOW_MS)
    return replica, chain


def proof_figures(count: int) -> ProofFigures:
    """Measure documents."""
    replica, chain = filled(count)
    for number in range(LARGE):
        replica.merge(chain.add("large", number), NOW_MS)
    replica.root()
    roots: list[float] = []
    for number in range(20):
        replica.merge(chain.put(f"run/{number * 31:07d}", number), NOW_MS)
        roots.append(timed(replica.root))
    prover = signer(9)
    keys = [f"run/{number:07d}" for number in range(0, count, count // 100)]
    documents: list[bytes] = []
    prove_s = timed(lambda: documents.extend(prove(replica, key, prover, NOW_MS) for key in keys))
    absent = [prove(replica, f"{key}/absent", prover, NOW_MS) for key in keys]
    verify_s = timed(lambda: [verify(replica.id, document) for document in documents])
    large: list[bytes] = []
    large_prove_s = timed(lambda: large.append(prove(replica, "large", prover, NOW_MS)))
    large_verify_s = timed(lambda: verify(replica.id, large[0]))
    return ProofFigures(
        count,
        max(map(len, documents)),
        max(map(len, absent)),
        statistics.median(roots) * 1e3,
        prove_s / len(keys) * 1e3,
        verify_s / len(keys) * 1e3,
        LARGE,
        len(large[0]),
        large_prove_s * 1e3,
        large_verify_s * 1e3,
    )


def show(name: str, figures: TreeFigures | ProofFigures) -> None:
    """Print them, a line each."""
    for field in fields(figures)[1:]:
        print(f"{name} {figures.keys:>9,}  {field.name:<18} {getattr(figures, field.name):>12,.2f}")


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--million", action="store_true", help="the tree at a million keys too")
    counts = (100_000, 1_000_000) if parser.parse_args().million else (100_000,)
    for count in counts:
        show("tree ", tree_figures(count))
    show("proof", proof_figures(counts[0]))


if __name__ == "__main__":
    main()
