"""Swarms of DHT nodes on the event heap, each a smaller version of a file in configs/sim/.

A test that fails names its seed: `make sim SCENARIO=… SEED=…` replays it. Where an attack is told
to fail, another test shows that it succeeds without the defence.
"""

import pytest

from tests.sim.kad_play import Outcome
from tests.sim.run import main, play
from tests.sim.scenario import load, with_changes


def played(name: str, *changes: str) -> dict[str, float]:
    """Play a scenario with changes; the figures, or a failure that says what to replay."""
    scenario = with_changes(load(name), changes)
    outcome = play(scenario)
    return {**outcome.summary(), "failed": float(len(outcome.failures))}


# --- without enemies ------------------------------------------------------------------------------


def test_every_lookup_finds_the_nearest_in_three_hops_and_forty_messages() -> None:
    found = played("calm_10k", "swarm.nodes=2000", "work.looks=50")
    assert found["found"] == 100.0
    assert found["nearest_20"] > 99.0
    assert found["hops_p99"] <= 3
    assert found["messages"] <= 40


def test_who_came_by_bootstrapping_finds_as_well_as_who_was_there_for_long() -> None:
    found = played("calm_1k", "swarm.nodes=120", "swarm.tables='joined'", "work.looks=60")
    assert found["found"] == 100.0


@pytest.mark.parametrize(("share", "least"), [(30, 99.9), (70, 98.0)])
def test_records_are_found_while_many_are_dead_in_all_tables(share: int, least: float) -> None:
    changes = ("swarm.nodes=500", "work.records=30", "work.looks=100")
    found = played(f"dead_{share}", *changes)
    assert found["correct"] >= least
    assert found["timeouts_p95"] <= 3.0


def test_every_author_is_found_with_losses_and_behind_nats() -> None:
    found = played("home", "swarm.nodes=80", "work.records=15", "work.looks=60")
    assert found["correct"] == 100.0


def test_providers_are_found() -> None:
    found = played("calm_1k", "work.kind='providers'", "work.records=20", "work.looks=60")
    assert found["correct"] == 100.0


def test_a_network_that_was_cut_in_two_is_whole_again() -> None:
    found = played("parted", "swarm.nodes=60", "work.records=20", "work.looks=100")
    assert found["correct"] == 100.0


def test_records_outlive_those_who_held_them() -> None:
    churn = ("swarm.nodes=60", "hours=0.4", "churn.median_session_s=600")
    found = played("churn_10k", *churn, "work.records=40", "work.looks=100")
    assert found["correct_n"] > 80
    assert found["correct"] >= 99.0


def test_a_part_of_those_who_leave_says_good_bye() -> None:
    churn = ("swarm.nodes=60", "hours=0.4", "churn.median_session_s=600", "churn.graceful=0.7")
    found = played("churn_10k", *churn, "work.records=40", "work.looks=100")
    assert found["correct"] >= 99.0


# --- with enemies ---------------------------------------------------------------------------------


def test_a_fifth_of_liars_changes_nothing_over_four_paths() -> None:
    found = played("hostile_1k", "swarm.nodes=400", "work.records=20", "work.looks=60")
    assert found["correct"] == 100.0


SYBILS = ("swarm.nodes=300", "work.trials=2", "work.looks=5")
DEFENCES = ("diversity", "region")


def test_sybils_of_four_networks_gain_nothing() -> None:
    assert played("sybils_45_1k", *SYBILS)["correct"] == 100.0


def test_nor_over_one_path_since_they_are_not_five_networks() -> None:
    assert played("sybils_45_1k", *SYBILS, "work.paths=1")["correct"] == 100.0


def test_sybils_gain_nothing_by_claiming_their_neighbours_networks() -> None:
    assert played("sybils_200_1k", *SYBILS, "sybils.claims=2")["correct"] >= 90.0


def test_without_diversity_and_region_sybils_of_four_networks_own_the_key() -> None:
    off = [f"defences.{name}=false" for name in DEFENCES]
    assert played("sybils_45_1k", *SYBILS, *off)["correct"] < 10.0


@pytest.mark.parametrize("left", DEFENCES)
def test_either_defence_alone_stops_sybils_of_four_networks(left: str) -> None:
    off = [f"defences.{name}=false" for name in DEFENCES if name != left]
    assert played("sybils_45_1k", *SYBILS, *off)["correct"] == 100.0


def test_sybils_of_a_hundred_networks_lose_against_the_region() -> None:
    assert played("sybils_200_1k", *SYBILS)["correct"] >= 90.0


def test_without_the_region_sybils_of_a_hundred_networks_own_the_key() -> None:
    assert played("sybils_200_1k", *SYBILS, "defences.region=false")["correct"] < 10.0


def test_over_one_path_sybils_of_a_hundred_networks_own_the_key() -> None:
    assert played("sybils_200_1k", *SYBILS, "work.paths=1")["correct"] < 50.0


def test_sybils_who_come_after_the_record_do_not_hide_it() -> None:
    found = played("sybils_200_1k", *SYBILS, "sybils.before_put=false")
    assert found["correct"] >= 90.0


def test_sybils_spread_over_the_region_do_not_hide_a_record() -> None:
    assert played("sybils_200_1k", *SYBILS, "sybils.bits=-4")["correct"] >= 90.0


# --- the simulator --------------------------------------------------------------------------------


def outcome_of(seed: int) -> Outcome:
    changes = ("swarm.nodes=100", "work.looks=20", "work.records=5", "links.loss=0.05")
    return play(with_changes(load("hostile_1k"), [*changes, f"seed={seed}"]))


def test_a_seed_replays_exactly() -> None:
    first, again, other = outcome_of(1), outcome_of(1), outcome_of(2)
    assert (first.figures, first.events) == (again.figures, again.events)
    assert first.figures != other.figures


def test_the_command_prints_a_table_and_says_which_goal_is_missed(
    capsys: pytest.CaptureFixture[str],
) -> None:
    small = ["calm_1k", "swarm.nodes=50", "work.looks=5"]
    assert main(small) == 0
    table = capsys.readouterr().out
    assert "found" in table
    assert ">= 100     met" in table
    strict = [*small, "goals.messages={at_most=1.0}"]
    assert main(["--json", "--seed", "3", *strict]) == 1
    printed = capsys.readouterr().out
    assert '"seed": 3' in printed
    assert '"ok": false' in printed
