"""The NAT lab itself, with plain sockets: each router is what its name says."""

import contextlib
import ipaddress
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Generator
from pathlib import Path

import pytest

from tests.net import probes, truth
from tests.net.lab import reaper
from tests.net.lab.lab import Lab, Site, missing
from tests.net.lab.rules import KINDS, Kind
from tests.net.probes import Behaviour

pytestmark = pytest.mark.skipif(missing() is not None, reason=str(missing()))

ROOT = Path(__file__).parents[2]
MENDED_S = 5.0  # takes 1 s
PATIENCE_S = 10.0  # for what a busy machine delays
HOLD = "import socket, time; s = socket.create_connection(({!r}, 5001)); time.sleep(60)"
PARENT = """
import time
from tests.net.lab.lab import Lab, Site
with Lab([Site("a")]) as lab:
    print(lab.popen("a1", ["sleep", "60"]).pid, flush=True)
    time.sleep(60)
"""
EXPECTED: dict[Kind, Behaviour] = {
    "open": Behaviour("none", "EIF"),
    "fw": Behaviour("none", "APDF"),
    "fullcone": Behaviour("EIM", "EIF"),
    "restricted": Behaviour("EIM", "ADF"),
    "portrestricted": Behaviour("EIM", "APDF"),
    "symmetric": Behaviour("APDM", "APDF"),
    "symseq": Behaviour("APDM", "APDF"),
    "cgnat": Behaviour("EIM", "APDF"),
    "cgnat-sym": Behaviour("APDM", "APDF"),
    "udpblock": Behaviour("EIM", "APDF"),
}


@pytest.fixture(scope="module")
def lab() -> Generator[Lab]:
    """Two sites of each type."""
    plan = [Site(f"{kind}-{side}", kind) for kind in KINDS for side in "ab"]
    with Lab(plan) as made:
        yield made


@pytest.mark.parametrize("kind", KINDS)
def test_a_router_maps_and_filters_as_its_type(lab: Lab, kind: Kind) -> None:
    assert probes.behaviour_tcp(lab, f"{kind}-a1") == EXPECTED[kind]
    udp = None if kind == "udpblock" else EXPECTED[kind]
    assert probes.behaviour_udp(lab, f"{kind}-a1") == udp


def test_a_sequential_router_counts(lab: Lab) -> None:
    ends = [("pub1", 5001), ("pub2", 5001), ("pub1", 5002)]
    ports = [probes.seen_tcp(lab, "symseq-a1", end, server_port=port)[1] for end, port in ends]
    assert ports == [ports[0], ports[0] + 1, ports[0] + 2]


def test_the_truth_about_pairs_has_the_known_counts() -> None:
    assert (len(truth.PAIRS), len(truth.DIRECT)) == (55, 42)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("portrestricted", "portrestricted"),
        ("fw", "symseq"),
        ("symseq", "symseq"),
        ("open", "symmetric"),
        ("cgnat", "udpblock"),
        ("portrestricted", "symmetric"),
        ("symmetric", "cgnat-sym"),
    ],
)
def test_a_pair_can_punch_or_cannot_as_known(lab: Lab, one: Kind, other: Kind) -> None:
    assert probes.punch(lab, f"{one}-a1", f"{other}-b1") == truth.can_be_direct(one, other)


def test_two_sites_are_built_and_removed_quickly() -> None:
    with Lab([Site("a", hosts=2), Site("b", "symmetric")]) as lab:
        assert len(lab.hosts) == 5
        assert _seen(lab, "a2") == lab.sites["a"].wan_ip


def test_addresses_are_global_and_of_different_networks(lab: Lab) -> None:
    outside = [router.wan_ip for router in lab.sites.values() if router.carrier is None]
    outside += [lab.hosts["pub1"].ip, lab.hosts["pub2"].ip]
    assert all(ipaddress.ip_address(ip).is_global for ip in outside)
    assert len({ip.rsplit(".", 2)[0] for ip in outside}) == len(outside)
    assert not ipaddress.ip_address(lab.sites["cgnat-a"].wan_ip).is_global


def test_routers_that_reject_do_so_and_are_punched_all_the_same() -> None:
    plan = [Site(name, inbound="reject", delay_ms=10) for name in "ab"]  # packets must cross
    with Lab(plan) as lab:
        with pytest.raises(ConnectionRefusedError):
            _connect(lab, "pub1", (lab.sites["a"].wan_ip, 999))
        assert probes.punch(lab, "a1", "b1")


def test_hosts_of_one_site_are_neighbours_and_one_carrier_serves_two() -> None:
    plan = [Site("a", "symmetric", hosts=2), Site("c", "cgnat", carrier="x")]
    with Lab([*plan, Site("d", "cgnat", carrier="x")]) as lab:
        assert probes.punch(lab, "a1", "a2")
        assert _seen(lab, "c1") == _seen(lab, "d1")
        assert lab.sites["c"].wan_ip != lab.sites["d"].wan_ip
        assert not probes.punch(lab, "c1", "d1", patience_s=0.3)  # the carrier leads nobody back


def test_ipv6_is_open_or_firewalled() -> None:
    with Lab([Site("a", ipv6="open"), Site("b", ipv6="firewalled")], public_ipv6=True) as lab:
        for site in "ab":
            _connect6(lab, f"{site}1", "pub1")
        _connect6(lab, "pub1", "a1")
        _connect6(lab, "b1", "a1")
        with pytest.raises(TimeoutError):
            _connect6(lab, "pub1", "b1", probes.WAIT_S)


def test_a_line_has_delay_and_loss_that_can_change() -> None:
    with Lab([Site("a", delay_ms=10)], publics=1) as lab:
        assert 0.020 <= _round_trip_s(lab) < 0.060
        lab.set_line("a", delay_ms=30)
        lab.set_line("pub1", delay_ms=10)
        assert 0.080 <= _round_trip_s(lab) < 0.150
        lab.set_line("a", loss=1.0)
        with probes.listening(lab, "pub1", 5001), pytest.raises(TimeoutError):
            _connect(lab, "a1", (lab.hosts["pub1"].ip, 5001), probes.WAIT_S)
        lab.set_line("a", rate_mbit=1.0)
        lab.set_line("pub1")
        assert _round_trip_s(lab) < 0.020


def test_bytes_are_counted_by_device_and_by_connection() -> None:
    with Lab([Site("a")], publics=1) as lab, probes.listening(lab, "pub1", 5001) as listener:
        before = lab.counters("pub1").received
        with _connect(lab, "a1", (lab.hosts["pub1"].ip, 5001)) as client:
            client.sendall(bytes(10_000))
            with listener.accept()[0] as accepted:
                while lab.counters("pub1").received - before < 10_000:
                    accepted.recv(65536)
                (sender,) = lab.connections("a1")
                assert sender.remote == (lab.hosts["pub1"].ip, 5001)
                assert sender.sent == 10_000
                assert lab.connections("pub1")[0].received == 10_000


def test_a_router_that_restarts_forgets_its_connections() -> None:
    with Lab([Site("a")], publics=1) as lab, _established(lab) as (client, server):
        lab.nat_reboot("a")
        client.sendall(b"x")
        with pytest.raises(TimeoutError):
            server.recv(1)


def test_a_site_gets_another_address() -> None:
    with Lab([Site("a"), Site("b", "fw")]) as lab:
        old, old_host = lab.sites["a"].wan_ip, lab.hosts["b1"].ip
        lab.renumber("a")
        lab.renumber("b")
        assert _seen(lab, "a1") == lab.sites["a"].wan_ip != old
        assert _seen(lab, "b1") == lab.hosts["b1"].ip != old_host


def test_a_host_moves_to_another_site() -> None:
    with Lab([Site("a"), Site("b", "symmetric")]) as lab:
        lab.move_host("a1", "b")
        assert _seen(lab, "a1") == lab.sites["b"].wan_ip


def test_cables_are_cut_and_mended_and_networks_parted() -> None:
    with Lab([Site("a", hosts=2), Site("c", "cgnat"), Site("d", "open")]) as lab:
        cables = {"a1": "a1", "a": "a2", "c": "c1", "d": "d1"}
        for cable, host in cables.items():
            lab.cut(cable)
            with pytest.raises(TimeoutError):
                _seen(lab, host, probes.WAIT_S)
        for cable in cables:
            lab.mend(cable)
        for host in cables.values():
            _seen_soon(lab, host)
        lab.partition(["a", "c"], ["pub1"])
        for host in ("a1", "c1"):
            with pytest.raises(TimeoutError):
                _seen(lab, host, probes.WAIT_S)
        _seen(lab, "d1")
        lab.heal()
        _seen(lab, "a1")


def test_a_machine_dies_without_a_word() -> None:
    with Lab([Site("a")], publics=1) as lab, probes.listening(lab, "pub1", 5001) as listener:
        child = [sys.executable, "-c", HOLD.format(lab.hosts["pub1"].ip)]
        process = lab.popen("a1", child)
        with listener.accept()[0] as server:
            lab.kill("a1")
            assert process.wait(5.0) == -signal.SIGKILL
            server.settimeout(probes.WAIT_S)
            with pytest.raises(TimeoutError):
                server.recv(1)


def test_nothing_is_left_when_the_parent_is_killed() -> None:
    parent = subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, cwd=ROOT)
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    inode = os.stat(f"/proc/{pid}/ns/net").st_ino
    assert reaper.inside({inode}) == [pid]
    parent.kill()
    parent.wait(5.0)
    parent.stdout.close()
    deadline = time.monotonic() + 5.0
    while reaper.inside({inode}) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert reaper.inside({inode}) == []


def _seen(lab: Lab, host: str, wait_s: float = probes.SURE_S) -> str:
    return probes.seen_tcp(lab, host, "pub1", server_port=5001, port=0, wait_s=wait_s)[0]


def _seen_soon(lab: Lab, host: str) -> None:
    deadline = time.monotonic() + MENDED_S
    while time.monotonic() < deadline:
        with contextlib.suppress(TimeoutError):
            _seen(lab, host, probes.WAIT_S)
            return
    _seen(lab, host)


def _connect(
    lab: Lab, host: str, address: probes.Address, wait_s: float = probes.SURE_S
) -> socket.socket:
    client = probes.open_socket(lab, host, wait_s=wait_s)
    try:
        client.connect(address)
    except OSError:
        client.close()
        raise
    return client


def _connect6(lab: Lab, host: str, other: str, wait_s: float = probes.SURE_S) -> None:
    def server() -> socket.socket:
        return socket.create_server(("::", 5006), family=socket.AF_INET6)

    with lab.hosts[other].call(server):
        address = (str(lab.hosts[other].ipv6), 5006)
        lab.hosts[host].call(lambda: socket.create_connection(address, wait_s)).close()


def _round_trip_s(lab: Lab) -> float:
    """The shortest of some: a busy machine adds to the others."""
    found: list[float] = []
    with probes.listening(lab, "pub1", 5001):
        for _ in range(5):
            with probes.open_socket(lab, "a1") as client:
                client.settimeout(PATIENCE_S)
                begun = time.monotonic()
                client.connect((lab.hosts["pub1"].ip, 5001))
                found.append(time.monotonic() - begun)
    return min(found)


@contextlib.contextmanager
def _established(lab: Lab) -> Generator[tuple[socket.socket, socket.socket]]:
    with (
        probes.listening(lab, "pub1", 5001) as listener,
        _connect(lab, "a1", (lab.hosts["pub1"].ip, 5001)) as client,
        listener.accept()[0] as server,
    ):
        server.settimeout(probes.WAIT_S)
        yield client, server
