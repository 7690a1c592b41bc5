"""The event heap that simulations run on: order, links, partitions, sessions."""

import statistics

import pytest

from tests.sim.heap import Alarm, Churn, ChurnOptions, Heap, LinkOptions, Links


def test_events_happen_in_order_of_time_and_then_of_asking() -> None:
    heap, seen = Heap(1), list[tuple[str, float]]()
    for name, time_s in (("c", 2.0), ("a", 1.0), ("b", 1.0), ("never", 9.0)):
        heap.at(time_s, lambda name=name: seen.append((name, heap.now_s)))
    heap.run(5.0)
    assert seen == [("a", 1.0), ("b", 1.0), ("c", 2.0)]
    assert heap.now_s == 5.0


def test_a_run_ends_when_it_is_told_to() -> None:
    heap, seen = Heap(1), list[int]()
    for number in range(5):
        heap.at(number, seen.append, number)
    heap.run(unless=lambda: len(seen) == 3)
    assert (seen, heap.now_s) == ([0, 1, 2], 2.0)


def test_an_alarm_rings_once_at_the_last_time_it_was_set_to() -> None:
    heap, rung = Heap(1), list[float]()
    alarm = Alarm(heap, lambda: rung.append(heap.now_s))
    alarm.set(5.0)
    alarm.set(2.0)
    alarm.set(3.0)  # later: the one of 2.0 was taken back
    heap.run(10.0)
    assert rung == [3.0]
    alarm.set(11.0)
    alarm.set(float("inf"))
    heap.run(20.0)
    assert rung == [3.0]


def test_delays_have_their_median_and_a_far_machine_is_far_from_all() -> None:
    links = Links(Heap(1), LinkOptions(delay_ms=50, spread=0.6), 400)
    delays = [links.delay_s(n, n + 1) for n in range(399)]
    assert statistics.median(delays) == pytest.approx(0.058, abs=0.006)  # a sum of two shares
    far = max(range(400), key=lambda n: links.delay_s(n, 0))
    assert min(links.delay_s(far, n) for n in range(10)) > statistics.median(delays)


def test_what_is_lost_or_parted_never_arrives() -> None:
    heap, got = Heap(1), list[int]()
    links = Links(heap, LinkOptions(loss=0.2), 100)
    for number in range(1000):
        links.send(0, 1, got.append, number)
    heap.run()
    assert 750 < len(got) < 850
    links.part(0.5)
    sides = {links.hears(0, n) for n in range(100)}
    assert sides == {True, False}
    stranger = next(n for n in range(100) if not links.hears(0, n))
    got.clear()
    links.send(0, stranger, got.append, 1)
    heap.run()
    assert got == []
    links.part(0.0)
    assert links.hears(0, stranger)


def test_who_goes_down_hears_nothing_that_is_on_its_way() -> None:
    heap, got = Heap(1), list[int]()
    links = Links(heap, LinkOptions(), 2)
    links.send(0, 1, got.append, 1)
    links.is_up[1] = False
    heap.run()
    assert got == []


@pytest.mark.parametrize("shape", [1.0, 0.6])
def test_sessions_have_their_median_and_keep_the_number_of_machines(shape: float) -> None:
    heap = Heap(1)
    gone, here = list[bool](), set(range(500))

    def left(machine: int, is_graceful: bool) -> None:
        here.remove(machine)
        gone.append(is_graceful)

    def came() -> int:
        here.add(machine := 500 + len(gone) * 1000 + len(here))
        return machine

    options = ChurnOptions(median_session_s=600, shape=shape, graceful=0.3, absent_s=0)
    churn = Churn(heap, options, left, came)
    assert statistics.median(churn.session_s() for _ in range(4001)) == pytest.approx(600, rel=0.1)
    churn.begin(range(500))
    heap.run(7200)
    wanted = 500 * 7200 / churn.mean_s
    assert len(gone) == pytest.approx(wanted, rel=0.1), "as many left as in a settled swarm"
    assert len(here) == 500
    assert sum(gone) / len(gone) == pytest.approx(0.3, abs=0.06)


def test_the_same_seed_replays_exactly() -> None:
    def story(seed: int) -> list[tuple[int, float]]:
        heap, seen = Heap(seed), list[tuple[int, float]]()
        links = Links(heap, LinkOptions(loss=0.1, unreachable=0.3), 50)

        def hear(machine: int) -> None:
            seen.append((machine, heap.now_s))
            if len(seen) < 500:
                links.send(machine, heap.rng.randrange(50), hear, heap.rng.randrange(50))
                links.send(machine, heap.rng.randrange(50), hear, heap.rng.randrange(50))

        hear(0)
        heap.run(100.0)
        return seen

    assert story(7) == story(7)
    assert story(7) != story(8)
