"""Hosts with the reachability probe, one process each, in namespaces of the lab.

A program: `python -m tests.net.prober HOST…`, each HOST as JSON ({"name", "namespace", "public"}).
It imports once and forks a child per host, which says on standard output, a JSON line each, what
its probe believes whenever that changes. It ends with its input.
"""

import ctypes
import hashlib
import json
import os
import sys
import time
from typing import Any

import trio

from node.host.service import LibP2pHost
from node.reach.watch import Probe
from node.tickets import SwarmKey
from wire.ids import PeerId, Signer

CLONE_NEWNET = 0x40000000
KEY = SwarmKey(b"p" * 32)
PORT = 4001


def seed_of(name: str) -> bytes:
    """The key of a host, the same in every process."""
    return hashlib.sha256(name.encode()).digest()


def peer_of(name: str) -> PeerId:
    """Its peer ID."""
    return Signer(seed_of(name)).peer


def main() -> None:
    """Fork the hosts and wait for the end of the input."""
    hosts = [json.loads(text) for text in sys.argv[1:]]
    for host in hosts:
        if os.fork() == 0:
            _live(host)
            os._exit(0)
    sys.stdin.read()


def _live(host: dict[str, Any]) -> None:
    """Be one host, until the program that forked us ends (its input ends for us, too)."""
    descriptor = os.open(host["namespace"], os.O_RDONLY)
    if ctypes.CDLL(None, use_errno=True).setns(descriptor, CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "setns")
    trio.run(_run, host["name"], host["public"])


async def _run(name: str, public: dict[str, list[str]]) -> None:
    listen = [f"/ip4/0.0.0.0/tcp/{PORT}", f"/ip6/::/tcp/{PORT}"]
    host = LibP2pHost(seed_of(name), KEY, listen)
    probe = Probe(host)
    async with trio.open_nursery() as nursery:
        await nursery.start(host.run)
        await nursery.start(probe.run)
        nursery.start_soon(_report, name, probe)
        for other, addresses in public.items():
            if other != name:
                host.keep(peer_of(other), addresses)
        await trio.lowlevel.wait_readable(sys.stdin.fileno())
        nursery.cancel_scope.cancel()


async def _report(name: str, probe: Probe) -> None:
    told, started = "", time.monotonic()
    while True:
        machine = probe.machine
        belief: dict[str, object] = {
            "name": name,
            "verdict": machine.verdict,
            "mapping": machine.behaviour.mapping if machine.behaviour else None,
            "addresses": [str(one) for one in machine.addresses()],
            "predicted": [],
            "evidence": [one.words for one in machine.evidence],
        }
        if json.dumps(belief) != told:
            told = json.dumps(belief)
            belief["at_s"] = round(time.monotonic() - started, 3)
            if belief["mapping"] == "sequential":
                belief["predicted"] = [one.port for one in await probe.predicted(4)]
            os.write(1, json.dumps(belief).encode() + b"\n")
        await probe.changed.park()


if __name__ == "__main__":
    main()
