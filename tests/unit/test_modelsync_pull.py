"""Which chunk is asked of whom: small windows, nothing lost, nothing waits for the slowest."""

from hypothesis import given
from hypothesis import strategies as st

from protocols.modelsync.pull import SLOW_MIN_S, WINDOW_MAX, WINDOW_MIN, Pull
from wire.ids import Signer

A, B, C = (Signer(bytes([n + 1]) * 32).peer for n in range(3))


def pull(chunks: int) -> Pull:
    made = Pull(range(chunks))
    for peer in (A, B, C):
        made.add(peer, 0.0)
    return made


def test_each_donor_has_a_small_window_and_gets_more_as_it_delivers() -> None:
    made = pull(100)
    assert made.order(A, 0.0) == [0, 1]
    assert made.order(B, 0.0) == [2, 3]
    assert made.order(A, 0.0) == []
    made.arrived(A, 0, 1.0)
    assert made.order(A, 1.0) == [4]
    assert made.missing == 99


def test_a_fast_donor_is_asked_for_what_it_gives_in_half_a_second() -> None:
    made, now = pull(3000), 0.0
    for _ in range(50):
        for index in made.order(A, now):
            now += 0.05
            made.arrived(A, index, now)
    assert len(made.order(A, now)) == 10
    for _ in range(50):
        for index in made.order(B, now):
            now += 0.001
            made.arrived(B, index, now)
    assert len(made.order(B, now)) == WINDOW_MAX
    assert len(made.order(C, now)) == WINDOW_MIN


def test_what_a_lost_donor_had_on_order_goes_to_others() -> None:
    made = pull(3)
    assert made.order(A, 0.0) == [0, 1]
    made.lost(A)
    assert sorted(made.order(B, 0.0)) == [0, 1]
    made.lost(A)  # twice does no harm


def test_a_chunk_that_a_donor_lacks_is_asked_of_others_only() -> None:
    made = pull(3)
    made.order(A, 0.0)
    made.refused(A, 0)
    made.refused(A, 1)
    assert made.order(A, 0.0) == [2]
    assert sorted(made.order(B, 0.0)) == [0, 1]


def test_when_nothing_is_left_the_idle_take_what_others_sit_on_too_long() -> None:
    made = pull(4)
    assert made.order(A, 0.0) == [0, 1]
    assert made.order(B, 0.0) == [2, 3]
    made.arrived(B, 2, 0.1)
    made.arrived(B, 3, 0.2)
    assert made.order(B, 0.2) == [0, 1]  # it needs 0.1 s for one, and they are 0.2 s old
    made.arrived(B, 0, 0.3)
    made.arrived(A, 0, 0.4)  # too late, and no harm
    assert made.givers == (B,)
    assert made.missing == 1
    assert made.order(C, 9.0) == []  # two have it on order already
    made.arrived(A, 1, 9.0)
    assert made.missing == 0
    assert made.order(C, 9.0) == []


def test_nobody_is_hurried_who_is_only_a_little_late() -> None:
    made = pull(2)
    made.order(A, 0.0)
    assert made.order(B, SLOW_MIN_S / 2) == []
    assert made.order(B, SLOW_MIN_S) == [0, 1]


events = st.lists(
    st.tuples(
        st.sampled_from([A, B, C]),
        st.sampled_from(["order", "arrive", "refuse", "lose"]),
        st.floats(0.001, 3.0),
    ),
    max_size=60,
)


@given(chunks=st.integers(0, 40), script=events)
def test_whatever_happens_one_good_donor_gets_all_the_chunks(
    chunks: int, script: list[tuple[str, str, float]]
) -> None:
    made, now = pull(chunks), 0.0
    asked: dict[str, list[int]] = {A: [], B: [], C: []}
    arrived: set[int] = set()
    for peer, event, wait_s in script:
        now += wait_s
        if event == "order":
            asked[peer] += made.order(peer, now)  # type: ignore[arg-type]
            assert len(asked[peer]) == len(set(asked[peer])) <= WINDOW_MAX
        elif event == "lose":
            made.lost(peer)  # type: ignore[arg-type]
            made.add(peer, now)  # type: ignore[arg-type]
            asked[peer] = []
        elif asked[peer]:
            index = asked[peer].pop()
            if event == "refuse":
                made.refused(peer, index)  # type: ignore[arg-type]
            else:
                made.arrived(peer, index, now)  # type: ignore[arg-type]
                arrived.add(index)
        assert made.missing == chunks - len(arrived)
    good = Signer(b"g" * 32).peer
    made.add(good, now)
    for _ in range(10 * chunks + 10):
        now += 10.0
        for index in made.order(good, now):
            made.arrived(good, index, now)
        for peer in (A, B, C):  # the others hang, then break off
            made.lost(peer)
    assert made.missing == 0
