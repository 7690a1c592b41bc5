"""Asking a router for a port: what goes over the wire, and what of its answers is believed."""

import struct
import threading
from pathlib import Path

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from node.reach import gateway, portmap
from node.reach.gateway import Granted, Refused
from node.reach.portmap import PortMaps
from node.reach.upnp import Igd
from wire.errors import BadMessage, PeerUnreachable

NONCE = bytes(range(12))
V4 = bytes(10) + b"\xff\xff"


def pcp_answer(
    *, version: int = 2, code: int = 0, nonce: bytes = NONCE, port: int = 4001, external: int = 4002
) -> bytes:
    header = struct.pack("!BBBBII12x", version, 0x81, 0, code, 3600, 7)
    return header + struct.pack("!12sB3xHH16s", nonce, 6, port, external, V4 + bytes((8, 8, 4, 4)))


def test_a_pcp_request_is_the_rfcs_sixty_bytes() -> None:
    request = gateway.pcp_map(NONCE, "192.168.1.7", 4001, 4001, 3600)
    assert len(request) == 60
    assert request[:2] == bytes((2, 1))
    assert request[4:8] == (3600).to_bytes(4, "big")
    assert request[8:24] == V4 + bytes((192, 168, 1, 7))
    assert request[24:36] == NONCE
    assert request[36] == 6
    assert request[40:44] == struct.pack("!HH", 4001, 4001)


def test_pcp_grants_refuses_or_is_of_another_age() -> None:
    assert gateway.read_pcp(pcp_answer(), NONCE, 4001) == Granted("8.8.4.4", 4002, 3600)
    assert gateway.read_pcp(pcp_answer(code=8), NONCE, 4001) == Refused("no resources")
    older = gateway.read_pcp(bytes((0, 0x81, 0, 1, 0, 0, 0, 9)), NONCE, 4001)
    assert isinstance(older, Refused)
    assert older.is_older


@pytest.mark.parametrize(
    "answer",
    [
        pcp_answer(nonce=bytes(12)),
        pcp_answer(port=4003),
        pcp_answer(external=0),
        pcp_answer()[:50],
        pcp_answer(version=3),
        b"",
    ],
)
def test_an_answer_about_something_else_is_no_answer(answer: bytes) -> None:
    with pytest.raises(BadMessage):
        gateway.read_pcp(answer, NONCE, 4001)


def test_natpmp_tells_its_address_then_maps() -> None:
    told = struct.pack("!BBHI4s", 0, 128, 0, 7, bytes((8, 8, 4, 4)))
    assert gateway.read_natpmp_external(told) == "8.8.4.4"
    assert gateway.natpmp_map(4001, 4002, 60) == struct.pack("!BBHHHI", 0, 2, 0, 4001, 4002, 60)
    granted = struct.pack("!BBHIHHI", 0, 130, 0, 7, 4001, 4005, 60)
    assert gateway.read_natpmp_map(granted, 4001, "8.8.4.4") == Granted("8.8.4.4", 4005, 60)
    refused = struct.pack("!BBHI", 0, 130, 2, 7)
    assert gateway.read_natpmp_map(refused, 4001, "8.8.4.4") == Refused("not authorised")


@given(st.binary(max_size=1200))
def test_whatever_a_router_says_is_read_or_refused(data: bytes) -> None:
    for read in (
        lambda: gateway.read_pcp(data, NONCE, 4001),
        lambda: gateway.read_natpmp_external(data),
        lambda: gateway.read_natpmp_map(data, 4001, "8.8.4.4"),
    ):
        try:
            read()
        except BadMessage:
            continue


def test_the_default_gateway_is_that_of_the_best_default_route(tmp_path: Path) -> None:
    table = tmp_path / "route"
    head = "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\tWindow\tIRTT\n"
    rows = [
        "wlan0\t00000000\t0202A8C0\t0003\t0\t0\t600\t00000000\t0\t0\t0",
        "eth0\t00000000\t0101A8C0\t0003\t0\t0\t100\t00000000\t0\t0\t0",
        "eth0\t0001A8C0\t00000000\t0001\t0\t0\t100\t00FFFFFF\t0\t0\t0",
    ]
    table.write_text(head + "\n".join(rows) + "\n")
    assert gateway.default_gateway(table) == "192.168.1.1"
    table.write_text(head)
    assert gateway.default_gateway(table) is None
    assert gateway.default_gateway(tmp_path / "none") is None


async def test_a_router_that_never_ends_its_answer_costs_one_thread(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked, over = list[str](), threading.Event()

    def drip(host: str) -> Igd:
        asked.append(host)
        over.wait()
        raise PeerUnreachable("UPnP: it hung up")

    monkeypatch.setattr(gateway, "default_gateway", lambda: None)
    monkeypatch.setattr(portmap, "find_igd", drip)
    monkeypatch.setattr(portmap, "UPNP_S", 0.05)
    maps = PortMaps(lambda: 4001, lambda: "192.168.1.7")
    with trio.fail_after(5.0):
        async with trio.open_nursery() as nursery:
            await nursery.start(maps.run)
            for _ in range(4):
                maps.tried.clear()
                maps.refresh()
                while "upnp" not in maps.tried:  # noqa: ASYNC110
                    await trio.sleep(0.01)
            nursery.cancel_scope.cancel()
    over.set()
    assert asked == ["192.168.1.7"]
