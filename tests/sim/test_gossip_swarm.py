"""Swarms of GossipSub machines on a virtual clock: delivery, copies, hops, under loss and attack.

The figures for 1,000 nodes are those of benchmarks/gossip_sim.py.
"""

import pytest

from tests.sim.gossip_heap import Outcome, Scenario, Swarm

SMALL, LARGE = 1024, 32 * 1024


def play(scenario: Scenario) -> Outcome:
    """Run it; a failing one can be repeated by what is printed."""
    print(scenario)
    return Swarm(scenario).run()


def test_everything_arrives_in_few_hops_and_copies() -> None:
    outcome = play(Scenario(nodes=150, messages=15, payload_bytes=SMALL))
    assert outcome.share == 1
    assert outcome.hops_at(0.99) <= 6
    assert 3 < outcome.copies <= 7
    assert outcome.delay_ms(0.99) < 150


def test_large_messages_arrive_almost_once() -> None:
    outcome = play(Scenario(nodes=150, messages=15, payload_bytes=LARGE))
    assert outcome.share == 1
    assert outcome.hops_at(0.99) <= 7
    assert outcome.copies <= 2
    assert outcome.delay_ms(0.99) < 400


@pytest.mark.parametrize("payload_bytes", [SMALL, LARGE])
@pytest.mark.parametrize("seed", [1, 2])
def test_loss_and_leaving_cost_no_message(payload_bytes: int, seed: int) -> None:
    outcome = play(
        Scenario(
            nodes=120,
            messages=10,
            payload_bytes=payload_bytes,
            seed=seed,
            loss=0.05,
            leaving=0.2,
        )
    )
    assert outcome.share >= 0.9999
    assert outcome.hops_at(0.99) <= 7
    assert outcome.copies <= (7 if payload_bytes == SMALL else 2)
    assert outcome.wronged == 0  # nobody is punished for lost packets


@pytest.mark.parametrize("payload_bytes", [SMALL, LARGE])
def test_a_fifth_of_hostile_nodes_is_thrown_out_and_stops_nothing(payload_bytes: int) -> None:
    outcome = play(
        Scenario(nodes=100, messages=10, payload_bytes=payload_bytes, hostile=0.2, settle_s=8.0)
    )
    assert outcome.share >= 0.999
    assert outcome.dropped > 0
    assert outcome.wronged == 0


def test_a_burst_from_one_node_of_a_full_mesh_arrives() -> None:
    """The case in which py-libp2p loses three quarters: 60 messages at once, 30 nodes."""
    outcome = play(
        Scenario(nodes=30, messages=60, payload_bytes=SMALL, degree=58, gap_s=0.0, publishers=1)
    )
    assert outcome.share == 1
    assert outcome.copies <= 8  # one from the author, who floods, and those of the mesh
    assert outcome.hops_at(0.99) <= 3
    assert outcome.delay_ms(0.99) <= 250  # 145 of them are the author's uplink


def test_a_burst_of_large_messages_arrives() -> None:
    outcome = play(
        Scenario(nodes=60, messages=30, payload_bytes=LARGE, gap_s=0.0, publishers=1, uplink=12.5e6)
    )
    assert outcome.share == 1
    assert outcome.copies <= 2.5  # announcements wait for each other, so more is pushed


def test_the_same_seed_is_the_same_run() -> None:
    scenario = Scenario(nodes=40, messages=5, payload_bytes=LARGE, loss=0.05, settle_s=4.0)
    assert play(scenario) == play(scenario)
