"""How fast a node can send: the best window of a round, the best of the last rounds."""

from protocols.modelsync.rates import KEPT, WINDOW_S, Meter, Rates


def test_a_meter_counts_its_best_window() -> None:
    meter = Meter()
    for tick in range(5):
        meter.add(1000, tick * WINDOW_S)
    meter.add(10, 9.0)
    assert meter.rate == int(1000 / WINDOW_S)


def test_one_slow_round_does_not_make_a_node_slow() -> None:
    rates = Rates()
    for rate in (300, 100, 0):
        rates.add(rate)
    assert rates.best == 300


def test_a_node_that_stays_slow_is_slow() -> None:
    rates = Rates()
    for rate in (300, *[100] * KEPT):
        rates.add(rate)
    assert rates.best == 100
