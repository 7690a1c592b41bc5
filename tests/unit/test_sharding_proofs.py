"""Commitments: the same rows give the same, other rows do not, and close ones are close."""

from functools import partial

import pytest
import torch
from torch import Tensor

from benchmarks.cheats import CHEATS
from protocols.sharding import commitments
from protocols.sharding.codecs import decode, encode
from protocols.sharding.commitments import (
    DIGEST_BYTES,
    FAR,
    SKETCH_BYTES,
    Commitment,
    commit,
    read,
    windows,
)
from protocols.sharding.proofs import Prover, sketch
from protocols.sharding.receipts import commit_rows, differs
from protocols.sharding.rows import ids_to_rows
from protocols.sharding.stage import Stage
from protocols.sharding.wire import PROOF_BYTES, PROOF_ROWS
from tests.unit.sharding_models import LAYERS, VOCABULARY, make_model
from wire.errors import BadMessage

HIDDEN = 64
same = partial(commitments.same, until=1000)
distance = partial(commitments.distance, until=1000)


def some_rows(count: int, seed: int = 0) -> Tensor:
    return torch.randn(count, HIDDEN, generator=torch.Generator().manual_seed(seed)) * 3


def add(prover: Prover, position: int, hidden: Tensor, codec: str = "float32") -> None:
    rows = encode(codec, hidden)
    prover.add(position, rows, decode(codec, rows, hidden.shape[1]))


def commitment(hidden: Tensor, *, base: int = 0, codec: str = "float32") -> Commitment:
    prover = Prover(base)
    add(prover, base, hidden, codec)
    return read(base, base + len(hidden), prover.proofs(), ids=False)


def test_a_commitment_to_32_rows_is_small() -> None:
    prover = Prover()
    add(prover, 0, torch.randn(PROOF_ROWS, 576))
    (proof,) = prover.proofs()
    assert len(proof) == PROOF_BYTES == DIGEST_BYTES + PROOF_ROWS * SKETCH_BYTES
    assert 150 * len(proof) <= PROOF_ROWS * 576 * 2  # of the rows in bfloat16


def test_how_rows_come_makes_no_difference() -> None:
    hidden = some_rows(100)
    prover, at = Prover(), 0
    for count in (1, 40, 1, 1, 17, 40):
        add(prover, at, hidden[at : at + count])
        at += count
    whole = Prover()
    add(whole, 0, hidden)
    assert prover.proofs() == whole.proofs()
    assert prover.position == 100


def test_rows_are_taken_back_at_any_position() -> None:
    hidden, drafts = some_rows(80), some_rows(60, seed=1)
    prover = Prover()
    add(prover, 0, hidden[:70])
    add(prover, 70, drafts[:9])
    add(prover, 75, drafts)
    add(prover, 33, hidden[33:80])  # far back, beyond two commitments
    whole = Prover()
    add(whole, 0, hidden)
    assert prover.proofs() == whole.proofs()


def test_a_cut_before_the_base_moves_it() -> None:
    prover = Prover(48)
    add(prover, 48, some_rows(5))
    add(prover, 40, some_rows(5, seed=1))
    assert (prover.base, prover.position) == (40, 45)
    with pytest.raises(AssertionError):
        add(prover, 46, some_rows(1))


def test_commitments_from_another_base_are_compared_where_both_speak() -> None:
    hidden = some_rows(100)
    whole, later = commitment(hidden), commitment(hidden[40:], base=40)
    assert windows(40, 100) == [(40, 64), (64, 96), (96, 100)]
    assert same(whole, later)
    assert distance(whole, later).values == 2 * 60
    changed = hidden.clone()
    changed[50, 3] += 40.0  # in the window that only one of them has in full
    assert not same(commitment(changed), later)
    changed = hidden.clone()
    changed[70, int(hidden[70].abs().argmin())] += 1e-3  # no sketch shows it, the digest does
    assert not same(commitment(changed), later)
    assert distance(commitment(changed), later).total == 0


def test_digests_are_compared_of_settled_rows_only() -> None:
    hidden = some_rows(2 * PROOF_ROWS)
    changed = hidden.clone()
    changed[-1] += 1.0
    one, other = commitment(hidden), commitment(changed)
    assert commitments.same_digests(one, other, 2 * PROOF_ROWS - 1)
    assert not commitments.same_digests(one, other, 2 * PROOF_ROWS)


def test_ids_have_digests_only() -> None:
    prover = Prover()
    rows = ids_to_rows(list(range(50)))
    prover.add(0, rows, None)
    assert prover.proofs() == commit(rows, 4)
    mine = read(0, 50, prover.proofs(), ids=True)
    assert same(mine, commit_rows(rows, 4, 0, 50))
    assert not same(mine, commit_rows(ids_to_rows([7, *range(1, 50)]), 4, 0, 50))
    assert distance(mine, mine).values == 0


@pytest.mark.parametrize("codec", ["bfloat16", "float16", "int8"])
def test_both_ends_of_a_link_commit_to_the_same(codec: str) -> None:
    hidden = some_rows(20)
    rows = encode(codec, hidden)
    sender, receiver = Prover(), Prover()
    sender.add(0, rows, decode(codec, rows, HIDDEN))
    receiver.add(0, rows[: len(rows) // 2], decode(codec, rows[: len(rows) // 2], HIDDEN))
    receiver.add(10, rows[len(rows) // 2 :], decode(codec, rows[len(rows) // 2 :], HIDDEN))
    assert sender.proofs() == receiver.proofs()


def test_distance_counts_steps_of_bfloat16_also_across_a_power_of_two() -> None:
    hidden = torch.zeros(1, 8)
    hidden[0, 2], hidden[0, 5] = 1.9921875, -768.0
    other = hidden.clone()
    other[0, 2] = 2.0
    found = distance(commitment(hidden), commitment(other))
    assert (found.total, found.mean, found.far) == (1, 0.5, 0.0)
    other[0, 5] = 768.0
    assert distance(commitment(hidden), commitment(other)).total == 1 + FAR


@pytest.mark.parametrize("largest", [1, 4, 7])  # before, between and behind the other two
def test_values_as_large_as_another_may_take_its_place(largest: int) -> None:
    hidden = torch.zeros(1, 8)
    hidden[0, largest], hidden[0, 2], hidden[0, 6] = 9.0, 2.0, 2.02
    other = hidden.clone()
    other[0, 2] = 2.03
    assert sketch(hidden) != sketch(other)
    assert distance(commitment(hidden), commitment(other)).total <= 2


@pytest.mark.parametrize("proofs", [[], [b""], [bytes(15)], [bytes(PROOF_BYTES)] * 2])
def test_commitments_of_another_length_are_refused(proofs: list[bytes]) -> None:
    with pytest.raises(BadMessage):
        read(0, 20, proofs, ids=False)
    assert read(20, 20, [], ids=False).sketches.shape == (0, 2, 3)


def hidden_after(cheat: str | None, chunks: list[int]) -> Tensor:
    """Return what the middle of a tiny model gives for 40 tokens."""
    stage = Stage(make_model("llama"), 0, LAYERS - 1)
    if cheat is not None:
        CHEATS[cheat](stage)
    ids = torch.randint(VOCABULARY, (1, 40), generator=torch.Generator().manual_seed(3))
    cache, at, found = stage.new_cache(), 0, list[Tensor]()
    for count in chunks:
        found.append(stage.forward(ids[:, at : at + count], cache).hidden[0].float())
        at += count
    return torch.cat(found)


@pytest.mark.parametrize("codec", ["float32", "float16", "int8"])
def test_honest_recomputation_is_close_and_every_cheat_is_not(codec: str) -> None:
    truth = commitment(hidden_after(None, [40]), codec=codec)
    stepwise = commitment(hidden_after(None, [8] + [1] * 32), codec=codec)
    assert differs(truth, stepwise, "float32") is None
    for cheat in CHEATS:
        false = commitment(hidden_after(cheat, [8] + [1] * 12), codec=codec)  # 20 steps
        assert differs(truth, false, "float32") is not None, cheat
