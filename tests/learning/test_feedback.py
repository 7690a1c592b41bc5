"""Error feedback and low rank: what is lost is owed, and all replicas reconstruct the same bits."""

import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.learn.feedback import ErrorFeedback
from shoal.learn.lowrank import LowRank
from shoal.learn.names import strategy_named
from shoal.learn.strategy import Part, Strategy, Turn, Vector
from tests.learning.toys import random_for

PARTS = [Part("m", (24, 16), 0, 384), Part("b", (16,), 384, 400), Part("n", (12, 40), 400, 880)]


def normal(seed: object, size: int) -> Vector:
    return random_for(seed).standard_normal(size, dtype=np.float32)


def signs(vector: Vector) -> Vector:
    """One bit a value: the lossiest of codecs."""
    return np.multiply(np.sign(vector), np.abs(vector).mean(dtype=np.float32))


@pytest.mark.parametrize("decay", [1.0, 0.95])
def test_what_was_left_out_goes_into_the_next(decay: float) -> None:
    errors, delta = ErrorFeedback(decay), np.array([1.0, -2.0], np.float32)
    assert errors.add(0, delta).tolist() == [1.0, -2.0]
    errors.settle(0, np.array([0.5, -2.0], np.float32))
    assert errors.add(0, delta).tolist() == [np.float32(1 + decay * 0.5), -2.0]


def test_in_the_long_run_everything_arrives() -> None:
    errors, delta, arrived = ErrorFeedback(1.0), normal("delta", 50), np.zeros(50, np.float32)
    for _ in range(2000):
        sent = signs(errors.add(0, delta))
        errors.settle(0, sent)
        arrived += sent
    np.testing.assert_allclose(arrived / 2000, delta, atol=0.05)
    assert float(np.abs(signs(delta) - delta).max()) > 0.5  # and without feedback it never would


def test_a_round_that_is_aborted_or_brings_nothing_leaves_no_trace() -> None:
    errors, delta = ErrorFeedback(1.0), normal("delta", 8)
    errors.settle(0, signs(errors.add(0, delta)))
    before = errors.export()["residual-000"].tobytes()
    errors.add(0, delta)
    errors.after(0, Turn(1, delta, 2, contributed=False))
    assert errors.export()["residual-000"].tobytes() == before


@pytest.mark.parametrize("name", ["diloco", "streaming", "dilocox", "eager"])
def test_residuals_survive_a_checkpoint(name: str) -> None:
    def replica() -> tuple[Vector, Strategy]:
        strategy = strategy_named(name, feedback=1.0)
        lane = strategy.prepare(PARTS, 9)[0]
        state = strategy.first(0, np.zeros(lane.elements, np.float32))
        strategy.enter(0, 0, state, state[: lane.elements])
        return state, strategy

    state, first = replica()
    elements = first.lanes[0].elements
    brought = first.contribution(0, 0, state, normal("local", elements))[: first.size(0, 0, state)]
    out = state.copy()
    first.finish(0, Turn(0, brought, 2, contributed=True, sent=signs(brought)), state, out)
    _, second = replica()
    own = first.export()
    assert set(own) == {"residual-000"}
    assert float(np.abs(own["residual-000"]).max()) > 0
    second.restore(own)
    next_local = normal("next", elements)
    for strategy in (first, second):
        strategy.enter(0, 1, out, next_local)
    ours, theirs = (s.contribution(0, 1, out, next_local) for s in (first, second))
    assert ours.tobytes() == theirs.tobytes()
    with pytest.raises(ValueError, match="of another model"):
        second.restore({"residual-000": np.zeros(3, np.float32)})
    with pytest.raises(ValueError, match="no lane for"):
        second.restore({"momentum": np.zeros(3, np.float32)})


def test_without_feedback_there_is_nothing_to_restore() -> None:
    strategy = strategy_named("dsgd")
    assert strategy.export() == {}
    with pytest.raises(ValueError, match="no vectors of its own"):
        strategy.restore({"residual-000": np.zeros(3, np.float32)})


# -- low rank --------------------------------------------------------------------------------


def low_matrix(seed: object, rows: int, cols: int, rank: int) -> Vector:
    left, right = normal((seed, "l"), rows * rank), normal((seed, "r"), cols * rank)
    return (left.reshape(rows, rank) @ right.reshape(rank, cols)).reshape(-1)


@settings(max_examples=20, deadline=None)
@given(
    seed=st.integers(0, 1 << 32), rank=st.integers(1, 4), scale=st.sampled_from([1e-20, 1, 1e25])
)
def test_bases_are_orthonormal_and_replicated(seed: int, rank: int, scale: float) -> None:
    low = LowRank(PARTS, 4)
    basis = low.next_basis(-1, rank, None, rank)
    assert basis.tobytes() == LowRank(PARTS, 4).next_basis(-1, rank, None, rank).tobytes()
    for round_ in range(3):
        mean = normal((seed, round_), low.size(round_, rank)) * np.float32(scale)
        basis = low.next_basis(round_, rank, mean, rank)
        for index, matrix in enumerate(low.matrices):
            length = matrix.cols if (round_ + 1 + index) % 2 == 0 else matrix.rows
            rows = basis[matrix.slot : matrix.slot + rank * length].reshape(rank, length)
            np.testing.assert_allclose(rows @ rows.T, np.eye(rank), atol=1e-5)


@pytest.mark.parametrize("noise", [0.0, 1e-4, 1e-2])
def test_a_basis_stays_orthonormal_though_factors_are_nearly_alike(noise: float) -> None:
    """Power iteration gives such factors; the mean of a delta of rank 1 gives equal ones."""
    low = LowRank([Part("m", (200, 160), 0, 32_000)], 8)
    same = np.tile(normal("same", 200), 8)
    mean = same + np.float32(noise) * normal("noise", len(same))
    rows = low.next_basis(0, 8, mean, 8)[: 8 * 200].reshape(8, 200)
    np.testing.assert_allclose(rows @ rows.T, np.eye(8), atol=1e-5)


def test_small_tensors_are_sent_whole_and_matrices_at_a_fraction() -> None:
    low = LowRank(PARTS, 2)
    vector = normal("v", 880)
    basis = low.next_basis(-1, 2, None, 2)
    sent = low.project(0, 2, basis, vector)
    assert len(sent) == low.size(0, 2) == 16 + 2 * 24 + 2 * 40  # b; rows of m; columns of n
    assert low.size(1, 2) == 16 + 2 * 16 + 2 * 12
    back = low.restore(0, 2, basis, sent, 880)
    assert back[384:400].tobytes() == vector[384:400].tobytes()


def test_a_matrix_of_low_rank_is_found_within_a_few_rounds() -> None:
    vector = np.concatenate([low_matrix(1, 24, 16, 2), normal("b", 16), low_matrix(2, 12, 40, 2)])
    low = LowRank(PARTS, 2)
    basis = low.next_basis(-1, 2, None, 2)
    for round_ in range(4):
        sent = low.project(round_, 2, basis, vector)
        back = low.restore(round_, 2, basis, sent, 880)
        basis = low.next_basis(round_, 2, sent, 2)
    np.testing.assert_allclose(back, vector, atol=1e-3)


def test_nothing_moved_gives_a_basis_all_the_same() -> None:
    low = LowRank(PARTS, 3)
    basis = low.next_basis(5, 3, np.zeros(low.size(5, 3), np.float32), 3)
    assert bool(np.isfinite(basis).all())
    assert low.effective_rank(5, 3, np.zeros(low.size(5, 3), np.float32)) == 0.0


@pytest.mark.parametrize("true_rank", [1, 2, 4])
def test_the_effective_rank_is_that_of_the_delta(true_rank: int) -> None:
    """Equal singular values: as many as there are. The rank of DiLoCoX follows, and grows again."""
    parts = [Part("m", (40, 32), 0, 1280)]
    low = LowRank(parts, 8)
    q, _ = np.linalg.qr(random_for("q").standard_normal((40, true_rank)))
    p, _ = np.linalg.qr(random_for("p").standard_normal((32, true_rank)))
    vector = (q @ p.T).astype(np.float32).reshape(-1)
    basis = low.next_basis(-1, 8, None, 8)
    for round_ in range(3):
        sent = low.project(round_, 8, basis, vector)
        basis = low.next_basis(round_, 8, sent, 8)
    assert low.effective_rank(2, 8, sent) == pytest.approx(true_rank, rel=0.02)


def test_dilocox_lowers_rank_and_interval_together() -> None:
    strategy = strategy_named("dilocox", every=40, rank=8, stages=1)
    parts = [Part("m", (40, 32), 0, 1280)]
    lane = strategy.prepare(parts, 99)[0]
    state = strategy.first(0, np.zeros(1280, np.float32))
    strategy.enter(0, 0, state, state[:1280])
    sizes = [strategy.size(0, 0, state)]
    moving = low_matrix(3, 40, 32, 1)
    for round_ in range(20):
        local = np.multiply(moving, np.float32(-(round_ + 1)))
        sent = strategy.contribution(0, round_, state, local)
        assert len(sent) == strategy.size(0, round_, state) <= lane.contribution
        out = state.copy()
        strategy.finish(0, Turn(round_, sent, 2, contributed=True, sent=sent), state, out)
        state = out
        sizes.append(strategy.size(0, round_ + 1, state))
    assert sizes[:3] == [8 * 40, 7 * 32, 6 * 40]  # the average is of 5 rounds: 4, 3.4, 2.92
    assert sizes[-1] == 2 * 40 or sizes[-1] == 3 * 40
    interval = 40 * (sizes[-1] // 40) // 8
    assert strategy.begins(0, 20, 0) == strategy.ends(0, 20, 0) == interval
    joined = strategy_named("dilocox", every=40, rank=8, stages=1)
    joined.prepare(parts, 99)
    joined.enter(0, 20, state, state[:1280])
    assert joined.begins(0, 20, 0) == interval


def test_dilocox_owes_what_others_did_not_get_of_its_own_and_keeps_it_in_the_model() -> None:
    strategy = strategy_named("dilocox", rank=2, stages=1)
    lane = strategy.prepare(PARTS, 9)[0]
    state = strategy.first(0, np.zeros(880, np.float32))
    strategy.enter(0, 0, state, state[:880])
    moved = normal("moved", 880)
    brought = strategy.contribution(0, 0, state, moved)
    out = state.copy()
    mean = np.multiply(brought, np.float32(0.5))  # as if another had brought nothing
    strategy.finish(0, Turn(0, mean, 2, contributed=True, sent=brought), state, out)
    low, basis = LowRank(PARTS, 2), state[2 * 880 : lane.state - 2]
    owed = -moved - low.restore(0, 2, basis, brought, 880)
    np.testing.assert_allclose(strategy.export()["residual-000"], owed, atol=1e-5)
    np.testing.assert_allclose(strategy.local(0, out, moved), out[:880] - owed, atol=1e-5)


def test_seeded_bases_are_the_same_for_ever() -> None:
    """Also on another numpy: replicas that begin with other bases never agree."""
    basis = LowRank([Part("a", (40, 30), 0, 1200)], 3).next_basis(-1, 3, None, 3)
    assert hashlib.sha256(basis.tobytes()).hexdigest()[:16] == "9348963852b9f8b0"
