"""Asking a real router (miniupnpd, in the lab) for a port, in each of the three ways."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.net.lab import portmap
from tests.net.lab.lab import Lab, Site, missing

ROOT = Path(__file__).parents[2]
reason = missing() or portmap.missing()
pytestmark = pytest.mark.skipif(reason is not None, reason=str(reason))

# Runs in a host of the lab: keeps a mapping of PORT, echoes what comes there, obeys lines.
KEEPER = """
import json, sys, trio
from node.reach.portmap import PortMaps

async def main(host, port):
    maps = PortMaps(lambda: port, lambda: host)
    async def echo(stream):
        await stream.send_all(await stream.receive_some(100))
    def told(line):
        found = maps.current
        return {"address": str(found.address), "via": found.via} if found else {"none": maps.tried}
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_tcp, echo, port)
        await nursery.start(maps.run)
        with trio.move_on_after(8):
            while not maps.current:
                await maps.changed.park()
        print(json.dumps(told(0)), flush=True)
        async for line in trio.wrap_file(sys.stdin):
            if line == "refresh\\n":
                maps.refresh()
                await trio.sleep(1)
                print(json.dumps(told(0)), flush=True)
        nursery.cancel_scope.cancel()

trio.run(main, sys.argv[1], int(sys.argv[2]))
"""

BY_UPNP = """
import json, sys
from node.reach.upnp import find_igd

igd = find_igd(sys.argv[1])
granted = igd.map(4001, 4001, 600)
again = igd.map(4001, granted.external_port, 600)
igd.unmap(granted.external_port)
print(json.dumps([granted.external_host, granted.external_port, again.external_port]))
"""

BY_NATPMP = """
import json, socket
from node.reach import gateway

with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
    sock.settimeout(2)
    sock.connect((gateway.default_gateway(), gateway.PORT))
    sock.send(gateway.natpmp_external())
    host = gateway.read_natpmp_external(sock.recv(1100))
    sock.send(gateway.natpmp_map(4001, 4001, 600))
    granted = gateway.read_natpmp_map(sock.recv(1100), 4001, host)
    print(json.dumps([granted.external_host, granted.external_port]))
"""

DIAL = """
import socket, sys
try:
    with socket.create_connection((sys.argv[1], int(sys.argv[2])), 1) as sock:
        sock.sendall(b"hello")
        print(sock.recv(100).decode())
except OSError as error:
    print(type(error).__name__)
"""


def python(lab: Lab, host: str, script: str, *args: str) -> str:
    done = lab.run(host, [sys.executable, "-c", script, *args], cwd=ROOT, timeout=20)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_a_port_is_mapped_kept_over_the_routers_restart_and_given_back() -> None:
    with Lab([Site("a", "portrestricted", portmap=True)], publics=1) as lab:
        own, wan = lab.hosts["a1"].ip, lab.sites["a"].wan_ip
        assert json.loads(python(lab, "a1", BY_UPNP, own)) == [wan, 4001, 4001]
        assert json.loads(python(lab, "a1", BY_NATPMP)) == [wan, 4001]
        keeper = lab.popen(
            "a1",
            [sys.executable, "-c", KEEPER, own, "4002"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        assert keeper.stdin
        assert keeper.stdout
        granted = {"address": f"/ip4/{wan}/tcp/4002", "via": "pcp"}
        assert json.loads(keeper.stdout.readline()) == granted
        assert python(lab, "pub1", DIAL, wan, "4002") == "hello"
        lab.nat_reboot("a")
        assert python(lab, "pub1", DIAL, wan, "4002") != "hello"
        keeper.stdin.write("refresh\n")
        keeper.stdin.flush()
        assert json.loads(keeper.stdout.readline()) == granted
        assert python(lab, "pub1", DIAL, wan, "4002") == "hello"
        keeper.stdin.close()  # it gives the port back
        assert keeper.wait(10) == 0
        keeper.stdout.close()
        assert "4002" not in lab.sites["a"].box.run(["nft", "list", "ruleset"]).stdout
