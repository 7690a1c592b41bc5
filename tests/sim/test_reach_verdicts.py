"""The reachability machine behind simulated routers of every type: the verdict and its evidence."""

from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from node.host.addresses import Address
from node.reach.behaviour import Behaviour
from node.reach.candidates import DOUBT_S, RECHECK_S, Outcome
from node.reach.family import PATIENCE_S, RANKS, AskDialBack, Effect, HoldAnchor, ProbeMapping
from tests.sim.routers import (
    KINDS,
    LISTENS,
    LISTENS_6,
    PORT,
    VERDICTS,
    WAN,
    Outside,
    World,
    outside,
)
from wire.ids import PeerId

TYPES = sorted(KINDS)
SEEDS = st.integers(0, 10_000)


def verdict_of(world: World) -> str:
    """Ask anew: a type checker believes that what was asserted once stays so."""
    return world.machine.verdict


def settled(kind: str | None, count: int = 2, *, ip6: str | None = None, seed: int = 0) -> World:
    world = World(kind, outside(count), ip6=ip6, seed=seed)
    world.start()
    world.run(60.0)
    return world


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("count", [2, 3, 7])
def test_each_router_type_gets_its_verdict(kind: str, count: int) -> None:
    for seed in range(20):
        world = settled(kind, count, seed=seed)
        assert verdict_of(world) == VERDICTS[kind], (seed, world.machine.evidence)


@pytest.mark.parametrize("kind", TYPES)
def test_one_peer_outside_is_believed_only_as_far_as_it_can_know(kind: str) -> None:
    verdict = settled(kind, 1).machine.verdict
    # It is the anchor: what it reaches behind a router that translates proves nothing.
    assert verdict == ("punchable" if kind == "fullcone" else VERDICTS[kind])


@pytest.mark.parametrize(("ip6", "verdict"), [("open", "public"), ("fw", "punchable")])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_ipv6_open_and_firewalled(ip6: str, verdict: str, count: int) -> None:
    world = settled(None, count, ip6=ip6)
    assert verdict_of(world) == verdict
    behind = settled("symmetric", count, ip6=ip6)
    assert behind.machine.verdict == verdict
    assert behind.machine.needs_relays  # those without IPv6 cannot dial us


@pytest.mark.parametrize("kind", TYPES)
def test_peers_that_come_one_after_the_other_lead_to_the_same_verdict(kind: str) -> None:
    everybody = outside(3)
    world = World(kind, [])
    world.start()
    world.run(5.0)
    assert verdict_of(world) == "unknown"
    for count in (1, 2, 3):
        world.outside = everybody[:count]
        world.meet()
        world.run(5.0)
    assert verdict_of(world) == VERDICTS[kind]


def test_without_anybody_outside_nothing_is_asked_and_nothing_is_known() -> None:
    world = settled("open", 0)
    assert (world.machine.verdict, world.done) == ("unknown", [])
    assert any("No peer outside" in one.words for one in world.machine.evidence)


def test_who_listens_nowhere_is_reached_through_relays() -> None:
    world = settled(None)
    assert (world.machine.verdict, world.machine.needs_relays, world.done) == ("relayed", True, [])
    assert [one.kind for one in world.machine.evidence] == ["address"]


def test_what_is_announced_was_reached_and_what_opens_a_peers_router_is_a_candidate() -> None:
    cone = settled("fullcone").machine
    assert cone.addresses() == [LISTENS, Address("ip4", WAN, PORT)]
    punchable = settled("portrestricted").machine
    assert punchable.addresses() == [LISTENS]
    assert punchable.candidates() == [LISTENS, Address("ip4", WAN, PORT)]
    for kind in ("symseq", "symmetric"):  # a router that filters by address only lets it in then
        assert {one.host for one in settled(kind).machine.candidates()} == {LISTENS.host, WAN}


def test_a_mapped_address_makes_a_bad_router_mapped() -> None:
    world = World("symmetric", outside(2))
    world.start()
    given = Address("ip4", WAN, 44001)
    world.machine.mapped({given: "upnp"}, world.now)
    world.run(30.0)
    assert verdict_of(world) == "relayed"  # it says it mapped, and nothing comes in
    world.routers["ip4"].lets_in = lambda remote, to, listens: to == given  # type: ignore[method-assign]
    world.run(RECHECK_S + 60.0)
    assert verdict_of(world) == "mapped"
    assert given in world.machine.addresses()
    world.machine.mapped({}, world.now)
    assert verdict_of(world) == "relayed"


def test_evidence_is_words_for_people() -> None:
    words = [one.words for one in settled("portrestricted", 3).machine.evidence]
    assert words[0] == "IPv4: 192.168.1.2 (private), port 4001."
    assert "Outside we are seen at 11.5.0.2:4001: a router translates our address." in words
    assert "The router keeps one external port for all destinations, the same as inside." in words
    assert sorted(words[-1].split()[:3]) == ["and", "…pub2", "…pub3"]
    assert words[-1].endswith("could not dial 11.5.0.2:4001.")


@pytest.mark.parametrize("count", [1, 3])
def test_a_server_in_a_cloud_that_only_others_dial_learns_its_address_from_them(count: int) -> None:
    place = Address("ip4", WAN, PORT)
    world = World("fullcone", [replace(one, dialled=place) for one in outside(count, ip6=False)])
    world.routers["ip4"].forward(PORT, LISTENS)
    world.start()
    world.run(5.0)
    assert verdict_of(world) == "public"
    assert world.machine.addresses() == [LISTENS, place]


def test_who_tells_a_wrong_address_does_no_more_than_that() -> None:
    liar = replace(outside(1)[0], dialled=Address("ip4", "11.99.0.1", PORT))
    world = World("fullcone", [liar, *outside(3)[1:]])
    world.start()
    world.run(60.0)
    assert verdict_of(world) == "public"
    assert world.machine.addresses() == [LISTENS, Address("ip4", WAN, PORT)]


def flapping(period: int) -> Callable[[Outcome], Outcome]:
    turn = 0

    def lie(_: Outcome) -> Outcome:
        nonlocal turn
        turn += 1
        return "reached" if turn % period else "failed"

    return lie


@pytest.mark.parametrize("period", [2, 3])
def test_answers_that_flap_do_not_flap_the_verdict(period: int) -> None:
    world = World("open", outside(1))
    world.outside[0].lies = flapping(period)
    world.start()
    world.run(24 * 3600.0)
    changes = sum(a != b for a, b in zip(world.states, world.states[1:], strict=False))
    assert verdict_of(world) == "public"
    assert changes <= 2, world.states[:20]


def test_worse_is_believed_after_two_failures_thirty_seconds_apart_and_better_at_once() -> None:
    world = settled("open", 3)
    assert verdict_of(world) == "public"
    world.routers["ip4"].kind = KINDS["fw"]
    asked = len(world.done)
    while not [one for one in world.done[asked:] if isinstance(one, AskDialBack)]:
        world.run(1.0)
    world.run(DOUBT_S - 2.0)
    assert verdict_of(world) == "public"
    world.run(5.0)
    assert verdict_of(world) == "punchable"
    world.routers["ip4"].kind = KINDS["open"]
    world.run(RECHECK_S + 1.0)
    assert verdict_of(world) == "public"


def test_a_router_that_turns_worse_is_probed_twice() -> None:
    world = settled("portrestricted", 3)
    world.routers["ip4"].kind = KINDS["symmetric"]
    world.run(RECHECK_S - 60.0 + DOUBT_S / 2)  # it settled for a minute
    assert verdict_of(world) == "punchable"
    world.run(DOUBT_S)
    assert verdict_of(world) == "relayed"


def test_another_external_address_is_asked_about_at_once() -> None:
    world = settled("fullcone", 3)
    asked = len(world.done)
    world.routers["ip4"].wan = "11.6.0.2"
    world.machine.observed(Address("ip4", "11.6.0.2", PORT), world.now)  # the anchor is asked again
    world.run(2.0)
    assert {type(one) for one in world.done[asked:]} == {AskDialBack, ProbeMapping}
    assert world.machine.addresses() == [LISTENS, Address("ip4", "11.6.0.2", PORT)]


def test_an_address_that_is_gone_ends_what_stood_on_it() -> None:
    world = settled("open", 2)
    world.listens["ip4"] = LISTENS
    world.routers = settled("symmetric").routers
    assert world.machine.interfaces([LISTENS], world.now)
    assert verdict_of(world) == "unknown"
    assert world.machine.addresses() == [LISTENS]
    world.run(5.0)
    assert verdict_of(world) == "relayed"


def test_the_same_interfaces_change_nothing() -> None:
    world = settled("open", 2)
    assert not world.machine.interfaces(list(world.listens.values()), world.now)
    assert verdict_of(world) == "public"


def test_an_anchor_that_fails_is_replaced_and_whom_it_opened_is_asked_last() -> None:
    world = settled("restricted", 3)
    first = next(one for one in world.done if isinstance(one, HoldAnchor))
    world.machine.released("ip4", first.peer, world.now)
    asked = len(world.done)
    world.run(RECHECK_S + 60.0)  # the filter still has the first, and the second now
    second = next(one for one in world.done[asked:] if isinstance(one, HoldAnchor))
    assert second.peer != first.peer
    assert verdict_of(world) == "punchable"


def test_a_liar_among_three_does_not_decide() -> None:
    for liar in range(3):
        for kind in ("open", "fw"):
            world = World(kind, outside(3))
            world.outside[liar].lies = lambda said: "failed" if said == "reached" else "reached"
            world.start()
            world.run(60.0)
            assert verdict_of(world) == VERDICTS[kind], (liar, kind)


def test_servers_that_do_not_answer_decide_nothing() -> None:
    world = World("open", outside(3))
    for one in world.outside:
        one.lies = lambda _: "no answer"
    world.start()
    world.run(60.0)
    assert verdict_of(world) == "punchable"  # seen without a router, and reached by nobody yet
    asked = [one for one in world.done if isinstance(one, AskDialBack)]
    assert len(asked) <= 3 * 60.0 / DOUBT_S + 3
    for one in world.outside:
        one.lies = lambda said: said
    world.run(60.0)
    assert verdict_of(world) == "public"


events = st.lists(
    st.sampled_from(
        ["due", "peers", "observed", "answer", "probe", "loss", "own", "restart", "map"]
    ),
    max_size=60,
)


@settings(max_examples=150, deadline=None)
@given(events, SEEDS, st.sampled_from(TYPES))
def test_any_order_of_events_keeps_the_invariants(order: list[str], seed: int, kind: str) -> None:
    world = World(kind, outside(4), ip6="open", seed=seed)
    machine, rng, waiting = world.machine, world.rng, list[Effect]()
    for event in order:
        world.now += rng.choice((0.0, 0.1, 5.0, 31.0, 700.0))
        now = world.now
        if event == "due":
            fresh = machine.due(now)
            assert machine.due(now) == []  # each thing is asked for once
            for one in fresh:
                if isinstance(one, AskDialBack):
                    assert not one.address.host.startswith("192.168.")
            waiting += fresh
        elif event == "peers":
            machine.outside([one.vantage for one in world.outside if rng.random() < 0.6], now)
        elif event == "observed":
            machine.observed(Address("ip4", WAN, rng.choice((PORT, 5000, 6000))), now)
        elif event == "loss":
            machine.released("ip4", rng.choice(world.outside).peer, now)
        elif event == "own":
            own = [LISTENS, replace(LISTENS, host="11.7.0.3"), LISTENS_6]
            machine.interfaces(own[: rng.randrange(4)], now)
        elif event == "restart":
            machine.restart(now)
        elif event == "map":
            machine.mapped({Address("ip4", WAN, 44001): "pcp"} if rng.random() < 0.5 else {}, now)
        elif waiting and event in ("answer", "probe"):
            one = waiting.pop(rng.randrange(len(waiting)))
            if isinstance(one, AskDialBack):
                outcome: Outcome = rng.choice(("reached", "failed", "no answer"))
                machine.dialled_back(one.peer, one.address, outcome, now)
            elif isinstance(one, ProbeMapping):
                seen = None
                machine.probed(one.network, seen, now)
        check(world)


def check(world: World) -> None:
    machine = world.machine
    assert machine.deadline(world.now) > world.now
    own = {one for family in machine.families.values() for one in family.own}
    found = [one for family in machine.families.values() for one in family.candidates.values()]
    for address in machine.addresses():
        assert address in own or any(one.address == address and one.reached for one in found)
    assert set(machine.addresses()) <= set(machine.candidates())
    best = max(RANKS[family.state] for family in machine.families.values())
    assert RANKS[machine.verdict] == best or not own
    if any(one.reached and one.source != "mapped" for one in found):
        assert machine.verdict == "public"
    assert all(one.words.endswith(".") for one in machine.evidence)


@settings(max_examples=60, deadline=None)
@given(SEEDS, st.sampled_from(TYPES), st.integers(2, 5))
def test_the_verdict_does_not_depend_on_the_order_of_answers(
    seed: int, kind: str, count: int
) -> None:
    assert settled(kind, count, seed=seed).machine.verdict == VERDICTS[kind]


def test_neighbours_that_a_firewall_lets_in_do_not_make_us_public() -> None:
    campus = [Outside(PeerId(f"near{at}"), f"11.4.7.{at}") for at in range(6)]
    for one in campus:
        one.lies = lambda _: "reached"  # the firewall is around all of them
    world = World("fw", [*campus, *outside(3)])
    world.start()
    world.run(60.0)
    assert verdict_of(world) == "punchable"


def test_a_new_mapping_is_dialled_by_those_that_the_old_one_had_let_in() -> None:
    world = settled("fullcone", 2)
    hold = next(one for one in world.done if isinstance(one, HoldAnchor))
    world.routers["ip4"].wan = "11.6.0.2"
    world.machine.released("ip4", hold.peer, world.now)  # the other one is asked from now on
    world.run(10.0)
    assert verdict_of(world) == "public"
    assert world.machine.addresses() == [LISTENS, Address("ip4", "11.6.0.2", PORT)]


def test_whom_an_anchor_had_let_in_is_no_witness_after_it() -> None:
    world = settled("restricted", 2)
    hold = next(one for one in world.done if isinstance(one, HoldAnchor))
    world.run(RECHECK_S - 70.0)
    world.machine.released("ip4", hold.peer, world.now)
    asked = len(world.done)
    world.run(60.0)
    assert [one for one in world.done[asked:] if isinstance(one, AskDialBack)]
    assert verdict_of(world) == "punchable"


def test_a_second_server_that_came_during_a_probe_is_asked_after_it() -> None:
    world = World("portrestricted", outside(2))
    machine = world.machine
    machine.interfaces([LISTENS], 0.0)
    machine.outside([world.outside[0].vantage], 0.0)
    first = [one for one in machine.due(0.0) if isinstance(one, ProbeMapping)]
    machine.outside([one.vantage for one in world.outside], 0.1)
    assert [one for one in machine.due(0.1) if isinstance(one, ProbeMapping)] == []
    machine.probed("ip4", Behaviour("endpoint-independent", True, 1), 0.2)
    second = [one for one in machine.due(0.2) if isinstance(one, ProbeMapping)]
    assert [len(one.servers) for one in first + second] == [1, 2]


def test_the_mapping_decides_meanwhile_if_nobody_reaches_us_at_once() -> None:
    world = World("open", outside(2))
    machine = world.machine
    machine.interfaces([world.listens["ip4"]], 0.0)
    machine.outside([one.vantage for one in world.outside], 0.0)
    asked = [one for one in machine.due(0.0) if isinstance(one, AskDialBack)]
    machine.probed("ip4", Behaviour("none", True, 2), 0.1)
    assert verdict_of(world) == "unknown"
    at = machine.deadline(0.1)
    assert at == PATIENCE_S
    machine.due(at)
    assert verdict_of(world) == "punchable"
    while asked:
        one = asked.pop()
        machine.dialled_back(one.peer, one.address, "reached", 2.0)
        asked += [each for each in machine.due(2.0) if isinstance(each, AskDialBack)]
    assert verdict_of(world) == "public"
