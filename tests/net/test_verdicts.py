"""The reachability verdict with real routers: hosts with the probe at sites of each type."""

import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator
from typing import Any

import pytest

from node.reach import stun
from tests.net.lab.lab import Lab, Site, missing
from tests.net.lab.rules import KINDS
from tests.sim.routers import VERDICTS

pytestmark = pytest.mark.skipif(missing() is not None, reason=str(missing()))

MAPPINGS = {
    "open": "none",
    "fw": "none",
    "symseq": "sequential",
    "symmetric": "random",
    "cgnat-sym": "random",
}
SIX = {"six-open": "public", "six-fw": "punchable"}
PATIENCE_S = 30.0


class Probers:
    """The hosts' processes, and what each believes now."""

    def __init__(self, lab: Lab, public: list[str], names: list[str]) -> None:
        places = {
            name: [f"/ip4/{lab.hosts[name].ip}/tcp/4001", f"/ip6/{lab.hosts[name].ipv6}/tcp/4001"]
            for name in public
        }
        hosts = [
            {"name": name, "namespace": lab.hosts[name].box.path, "public": places}
            for name in [*public, *names]
        ]
        command = [sys.executable, "-m", "tests.net.prober", *map(json.dumps, hosts)]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        self.beliefs: dict[str, dict[str, Any]] = {}
        self.history: dict[str, list[str]] = {}
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            belief = json.loads(line)
            self.beliefs[belief["name"]] = belief
            verdicts = self.history.setdefault(belief["name"], [])
            if not verdicts or verdicts[-1] != belief["verdict"]:
                verdicts.append(belief["verdict"])

    def until(self, condition: Callable[[], bool], within_s: float = PATIENCE_S) -> float:
        """Wait for something; returns how long that took."""
        started = time.monotonic()
        while not condition():
            if time.monotonic() > started + within_s:
                raise AssertionError(json.dumps(self.beliefs, indent=1, ensure_ascii=False))
            time.sleep(0.05)
        return time.monotonic() - started

    def verdict(self, name: str) -> object:
        """What a host believes."""
        return self.beliefs.get(name, {}).get("verdict")

    def close(self) -> None:
        """End them all."""
        _, errors = self._process.communicate(timeout=10.0)
        self._thread.join()
        assert not errors, errors.decode()


@pytest.fixture(scope="module")
def lab() -> Generator[Lab]:
    plan = [Site(kind, kind) for kind in KINDS]
    plan += [Site("six-open", "symmetric", ipv6="open")]
    plan += [Site("six-fw", "symmetric", ipv6="firewalled")]
    with Lab(plan, public_ipv6=True) as made:
        yield made


@pytest.fixture(scope="module")
def probers(lab: Lab) -> Generator[Probers]:
    names = [f"{kind}1" for kind in [*KINDS, *SIX]]
    made = Probers(lab, ["pub1", "pub2"], names)
    try:
        yield made
    finally:
        made.close()


def test_each_type_gets_its_verdict_and_its_mapping(probers: Probers) -> None:
    expected = {f"{kind}1": verdict for kind, verdict in (VERDICTS | SIX).items()}
    expected |= {"pub1": "public", "pub2": "public"}
    took_s = probers.until(
        lambda: all(probers.verdict(name) == verdict for name, verdict in expected.items())
    )
    print(f"all verdicts after {took_s:.1f} s")
    mappings = {f"{kind}1": MAPPINGS.get(kind, "endpoint-independent") for kind in KINDS}
    probers.until(
        lambda: all(probers.beliefs[name]["mapping"] == said for name, said in mappings.items())
    )
    probers.until(lambda: bool(probers.beliefs["symseq1"]["predicted"]))
    ports = probers.beliefs["symseq1"]["predicted"]
    assert ports == list(range(ports[0], ports[0] + 4))


def test_a_restart_of_the_router_or_a_new_address_is_noticed(lab: Lab, probers: Probers) -> None:
    probers.until(lambda: probers.verdict("fullcone1") == "public")
    lab.renumber("fullcone")
    place = f"/ip4/{lab.sites['fullcone'].wan_ip}/tcp/4001"
    took_s = probers.until(lambda: place in probers.beliefs["fullcone1"]["addresses"], 60.0)
    print(f"new address after {took_s:.1f} s")
    assert probers.verdict("fullcone1") == "public"


def test_a_host_that_moves_is_judged_anew(lab: Lab, probers: Probers) -> None:
    lab.move_host("open1", "symmetric")
    took_s = probers.until(lambda: probers.verdict("open1") == "relayed")
    print(f"verdict after moving: {took_s:.1f} s")
    lab.move_host("open1", "open")
    probers.until(lambda: probers.verdict("open1") == "public")


def test_stun_serves_a_few_connections_of_one_address_and_goes_on(
    lab: Lab, probers: Probers
) -> None:
    probers.until(lambda: probers.verdict("pub1") == "public")
    place = (lab.hosts["pub1"].ip, 4001)
    sockets = [
        lab.hosts["udpblock1"].call(lambda: socket.create_connection(place, 5.0)) for _ in range(12)
    ]
    answered = [_asks(one) for one in sockets]
    assert answered.count(True) in (7, 8)  # its own anchor may be one of eight
    for one in sockets:
        one.close()
    with lab.hosts["restricted1"].call(lambda: socket.create_connection(place, 5.0)) as other:
        assert _asks(other)


def _asks(sock: socket.socket) -> bool:
    """Ask for our address; False if the server hangs up."""
    sock.settimeout(5.0)
    sock.sendall(stun.encode_request(bytes(12)))
    try:
        return bool(sock.recv(100))
    except ConnectionResetError:
        return False
