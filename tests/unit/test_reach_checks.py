"""What netcheck says of hand-made views: each type of router, IPv6, relays, peers, clock."""

from dataclasses import replace
from typing import Any

import msgspec
import pytest

from node.host.addresses import Address, parse_address
from node.host.views import Path, PeerView
from node.reach.checks import Facts, checks
from node.reach.family import State
from node.reach.views import Held, PortMapView, Punch, ReachView, RelayServing
from shoal.reach import Check
from wire.ids import peer_id_of

BOB, EVE, RELAY = (peer_id_of(bytes([number]) * 32) for number in (2, 3, 4))
NAMES = {BOB: "bob", EVE: "eve", RELAY: "reef"}
INSIDE = parse_address("/ip4/192.168.1.10/tcp/4001")
OUTSIDE = parse_address("/ip4/11.1.0.2/tcp/4001")
SIX = parse_address("/ip6/2a0e:1:0:1::a/tcp/4001")
HELD = [Held(RELAY, "11.9.0.2", 20.4, 3000.0, []), Held(BOB, "12.9.0.2", None, 3000.0, [])]


def view(verdict: State, behaviour: str, *, held: list[Held] = HELD, **more: Any) -> ReachView:
    made = ReachView(verdict, [], [], behaviour=behaviour, ip4=verdict, outside=2)
    hidden = verdict in ("punchable", "relayed")
    return msgspec.structs.replace(made, held=held if hidden else [], **more)


def peer(path: str = "direct", *, is_punched: bool = False) -> PeerView:
    relay = RELAY if path == "relayed" else None
    where: Path = "relayed" if path == "relayed" else "direct"
    return PeerView(BOB, "/ip4/11.2.0.2/tcp/9", "in", where, 12.0, 0, 0, 0.0, 1, relay, is_punched)


def facts(made: ReachView, *listening: Address, **more: Any) -> Facts:
    base = Facts(made, listening or (INSIDE,), peers=[peer()], names=NAMES)
    return replace(base, **more)


def by_name(found: list[Check]) -> dict[str, Check]:
    assert len({one.name for one in found}) == len(found)
    return {one.name: one for one in found}


FEW = "only to peers whose routers let any port in"
FORWARD = "forward TCP port 4001 to this machine"

# type: verdict, mapping, own address, levels of reachability and router, what they say
ROUTERS: dict[str, tuple[State, str, Address, str, str, str, str]] = {
    "open": ("public", "none", OUTSIDE, "ok", "ok", "anybody can dial", "no router"),
    "fw": ("punchable", "none", OUTSIDE, "ok", "warn", "directly within seconds", "a firewall"),
    "fullcone": ("public", "endpoint-independent", INSIDE, "ok", "ok", "anybody", "(cone)"),
    "restricted": ("punchable", "endpoint-independent", INSIDE, "ok", "ok", "within", "(cone)"),
    "portrestricted": ("punchable", "endpoint-independent", INSIDE, "ok", "ok", "relay", "(cone)"),
    "symmetric": ("relayed", "random", INSIDE, "warn", "warn", "through a relay only", FEW),
    "symseq": ("punchable", "sequential", INSIDE, "ok", "warn", "within", "predictable"),
    "cgnat": ("punchable", "endpoint-independent", INSIDE, "ok", "ok", "within", "(cone)"),
    "cgnat-sym": ("relayed", "random", INSIDE, "warn", "warn", "through a relay only", FEW),
    "udpblock": ("punchable", "endpoint-independent", INSIDE, "ok", "ok", "within", "(cone)"),
}


@pytest.mark.parametrize("kind", ROUTERS)
def test_each_type_of_router_is_told_in_words(kind: str) -> None:
    verdict, behaviour, own, reached, router, says, about_router = ROUTERS[kind]
    found = by_name(checks(facts(view(verdict, behaviour), own)))
    assert (found["reachability"].level, found["router"].level) == (reached, router)
    assert says in found["reachability"].text
    assert about_router in found["router"].text
    assert [one.name for one in found.values() if one.level == "fail"] == []
    assert all(bool(one.fix) == (one.level != "ok") for one in found.values())


@pytest.mark.parametrize("kind", ["symmetric", "symseq", "cgnat-sym"])
def test_who_is_behind_a_symmetric_router_is_told_what_to_do(kind: str) -> None:
    verdict, behaviour, own, *_ = ROUTERS[kind]
    fix = by_name(checks(facts(view(verdict, behaviour), own)))["router"].fix
    assert fix == f"turn on UPnP or NAT-PMP in the router, or {FORWARD}"


def test_open_ipv6_makes_a_hidden_machine_public_there_and_says_so() -> None:
    made = view("public", "random", ip4="relayed", ip6="public", held=HELD)
    found = by_name(checks(facts(msgspec.structs.replace(made, held=HELD), INSIDE, SIX)))
    assert found["IPv6"] == Check("IPv6", "ok", "open: anybody with IPv6 can dial this machine")
    assert found["reachability"].text == "public over IPv6; over IPv4 relayed"
    assert "reef at 11.9.0.2 (20 ms)" in found["relays"].text


def test_firewalled_ipv6_names_the_port_to_allow() -> None:
    made = view("punchable", "endpoint-independent", ip6="punchable")
    found = by_name(checks(facts(made, INSIDE, replace(SIX, port=4002))))
    assert found["IPv6"].level == "warn"
    assert "allow TCP port 4002" in found["IPv6"].fix


def test_a_mapped_port_makes_the_behaviour_of_the_router_harmless() -> None:
    granted = PortMapView("/ip4/11.1.0.2/tcp/4001", "upnp", "192.168.1.1", 1800.0)
    made = view("mapped", "random", port_maps=[granted])
    found = by_name(checks(facts(made)))
    assert all(one.level == "ok" for one in found.values())
    assert "by upnp of 192.168.1.1, 30 min left" in found["port mapping"].text
    assert found["reachability"].text.startswith("mapped")


def test_a_mapped_port_that_nobody_reaches_means_a_second_router() -> None:
    granted = PortMapView("/ip4/100.64.0.9/tcp/4001", "pcp", "192.168.1.1", 1800.0)
    found = by_name(checks(facts(view("relayed", "random", port_maps=[granted]))))
    assert found["port mapping"].level == "warn"
    assert "public IPv4 address" in found["port mapping"].fix


def test_what_each_way_of_port_mapping_said_is_told() -> None:
    tried = {"pcp": "no answer", "upnp": "no router answers"}
    found = by_name(checks(facts(view("relayed", "random", port_maps_tried=tried))))
    assert found["port mapping"].text == "none (pcp: no answer; upnp: no router answers)"
    assert FORWARD in found["port mapping"].fix
    off = by_name(checks(facts(view("relayed", "random"), port_mapping=False)))
    assert "net.port_mapping = true" in off["port mapping"].fix


def test_a_hidden_machine_without_a_relay_fails_but_not_in_its_first_seconds() -> None:
    made = view("punchable", "endpoint-independent", held=[])
    assert by_name(checks(facts(made)))["relays"].level == "fail"
    assert by_name(checks(facts(made, uptime_s=5.0)))["relays"].level == "warn"
    one = by_name(checks(facts(view("punchable", "endpoint-independent", held=HELD[:1]))))
    assert (one["relays"].level, "only one" in one["relays"].text) == ("warn", True)


def test_a_lan_that_nobody_looks_at_from_outside_is_well() -> None:
    found = by_name(checks(facts(ReachView("unknown", [], []))))
    assert {one.level for one in found.values()} == {"ok"}
    assert "no connected peer is outside" in found["reachability"].text
    silent = by_name(checks(facts(ReachView("unknown", [], [], outside=2))))
    assert silent["reachability"].level == "warn"
    assert "2 peers outside" in silent["reachability"].text


def test_a_machine_that_listens_on_loopback_alone_is_warned() -> None:
    local = parse_address("/ip4/127.0.0.1/tcp/4001")
    found = by_name(checks(facts(ReachView("unknown", [], []), local)))
    assert "net.listen" in found["interfaces"].fix
    assert found["listening"].text == "TCP 4001 on IPv4"


def test_peers_are_counted_by_path_and_relays_named() -> None:
    made = view("relayed", "random", punches=[Punch(BOB, "failed", 3, 12.0, 40.0)])
    peers = [peer(), peer(is_punched=True), peer("relayed")]
    found = by_name(checks(facts(made, peers=peers)))
    assert found["peers"].text == ("3 connected: 1 direct, 1 punched, 1 relayed (bob via reef)")
    assert found["hole punching"].level == "warn"
    assert "bob no way through in 3 tries, 40 s ago" in found["hole punching"].text
    done = view("punchable", "none", punches=[Punch(BOB, "direct", 1, 0.4, 40.0)])
    assert by_name(checks(facts(done)))["hole punching"] == Check(
        "hole punching", "ok", "bob direct after 0.4 s"
    )


def test_a_node_alone_is_told_how_others_join() -> None:
    found = by_name(checks(facts(ReachView("unknown", [], []), peers=[])))
    assert "`shoal ticket`" in found["peers"].fix
    young = by_name(checks(facts(ReachView("unknown", [], []), peers=[], uptime_s=1.0)))
    assert young["peers"].level == "ok"


@pytest.mark.parametrize(
    ("skew_ms", "level"), [(0, "ok"), (-999, "ok"), (1_000, "warn"), (-30_000, "fail")]
)
def test_a_wrong_clock(skew_ms: int, level: str) -> None:
    found = by_name(checks(facts(view("public", "none"), OUTSIDE, clock_skew_ms=skew_ms)))
    assert found["clock"].level == level


def test_a_relay_says_what_it_does_and_whether_it_can() -> None:
    on = RelayServing(is_on=True, reservations=1, circuits=2, bytes=3_000_000, refused=4)
    found = by_name(checks(facts(view("public", "none", relay=on), OUTSIDE)))
    assert found["relay service"].text == (
        "on: 1 reservation, 2 circuits, 3.0 MB relayed, 4 refused"
    )
    hidden = by_name(checks(facts(view("relayed", "random", relay=on))))
    assert "net.relay" in hidden["relay service"].fix
