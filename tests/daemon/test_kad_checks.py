"""Where a peer of the DHT is known to answer; peers of other implementations."""

import socket
from dataclasses import dataclass

import pytest

from dht import kad_pb2 as pb
from dht.messages import (
    AddProviders,
    Ping,
    Stored,
    hearsay,
)
from dht.records import seal_provision
from node import kad
from node.host.addresses import parse_address
from tests.daemon.kad_ends import PUBLIC, ends, make_end, place_of
from wire import frames
from wire.errors import BadMessage, PeerUnreachable
from wire.ids import PeerId, peer_id_of
from wire.ports import Stream


async def test_a_local_peer_is_believed_on_a_connection_that_it_made() -> None:
    a, b = make_end(), make_end()
    async with ends(a, b):
        assert (await a.ask(b, Ping())).address == place_of(b)  # dialled
        accepted = b.host.counters().accepted, a.host.counters().accepted
        reply = await b.ask(a, Ping(), is_check=True)
        assert reply.address == place_of(a)  # a made the connection, from another port
        assert (b.host.counters().accepted, a.host.counters().accepted) == accepted


async def test_who_claims_nothing_local_is_not_believed_for_coming_from_there() -> None:
    a, b = make_end(), make_end()
    async with ends(a, b):
        await a.host.connect(b.host.addresses()[0])
        rumour = hearsay(a.host.peer, ("/ip4/8.8.8.8/tcp/1",))
        assert (await b.ask(rumour, Ping())).address == place_of(a)  # its own word counts
        a.streams._own = lambda: None
        for claims in ((), rumour.addrs, (f"{place_of(a)}/p2p/{b.host.peer}",)):
            assert (await b.ask(hearsay(a.host.peer, claims), Ping())).address is None
        assert (await b.ask(hearsay(a.host.peer, (place_of(a),)), Ping())).address == place_of(a)


@pytest.mark.parametrize(
    ("address", "is_global"),
    [
        ("/ip4/8.8.8.8/tcp/1", True),
        ("/ip6/2600::1/tcp/1", True),
        ("/ip6/::ffff:8.8.8.8/tcp/1", True),
        ("/ip6/::ffff:10.0.0.1/tcp/1", False),
        ("/ip4/192.168.1.1/tcp/1", False),
        ("/ip4/100.64.0.1/tcp/1", False),
        ("/ip6/::1/tcp/1", False),
        ("/dns4/example.org/tcp/1", False),
    ],
)
def test_what_strangers_could_dial(address: str, *, is_global: bool) -> None:
    assert kad._is_global(parse_address(address)) == is_global


SOMEBODY = peer_id_of(bytes(32))


@dataclass
class Way:
    """As much of a stream as tells where it leads."""

    remote: str
    came_in_at: float | None = None
    path: str = "direct"
    peer: PeerId = SOMEBODY


HERE, THERE, FAR = "/ip4/10.0.0.1/tcp/1", "/ip4/10.0.0.2/tcp/1", "/ip4/8.8.8.8/tcp/1"


@pytest.mark.parametrize(
    ("way", "claims", "proved"),
    [
        (Way(FAR), [HERE, FAR], FAR),
        (Way(FAR), ["/ip4/8.8.8.8/tcp/2", "/ip4/8.8.4.4/tcp/1"], None),
        (Way(FAR), ["/dns4/example.org/tcp/1"], FAR),
        (Way(FAR), ["/dns4/example.org/tcp/2"], None),
        (Way(FAR, came_in_at=1.0), [FAR], None),  # any port of a router may look like that
        (Way(FAR, came_in_at=1.0), [HERE], None),
        (Way(FAR, path="relayed"), [FAR], None),
        (Way(HERE, path="relayed"), [HERE], None),
        (Way("/ip4/10.0.0.1/tcp/9", came_in_at=1.0), [FAR, THERE, HERE], HERE),
        (Way("/ip4/10.0.0.3/tcp/9", came_in_at=1.0), [FAR, THERE, HERE], THERE),
        (Way("/ip4/10.0.0.1/tcp/9", came_in_at=1.0), [FAR, "/dns/a/tcp/9"], None),
        (Way("/ip6/fe80::1%eth0/tcp/9", came_in_at=1.0), [HERE], None),
        (Way(HERE), [f"{FAR}/p2p/{Way.peer}/p2p-circuit", f"{HERE}/p2p/{Way.peer}"], HERE),
        (Way(HERE), [f"{HERE}/p2p/{peer_id_of(bytes([1]) * 32)}"], None),
    ],
)
def test_what_a_connection_proves(way: Way, claims: list[str], proved: str | None) -> None:
    found = kad._answering_at(way, kad._claims(way.peer, tuple(claims)))  # type: ignore[arg-type]
    assert found == proved


@pytest.fixture
def everywhere_is_global(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loopback stands for the internet."""
    monkeypatch.setattr(kad, "_is_global", lambda address: address.network.startswith("ip"))


@pytest.mark.usefixtures("everywhere_is_global")
async def test_a_peer_that_came_to_us_is_dialled_where_it_claims_to_be() -> None:
    a, b = make_end(), make_end()
    async with ends(a, b):
        await a.ask(b, Ping())  # a dials
        assert (await b.ask(a, Ping())).address is None
        accepted = a.host.counters().accepted
        assert (await b.ask(a, Ping(), is_check=True)).address == place_of(a)
        assert a.host.counters().accepted == accepted + 1
        assert b.host.connected() == [a.host.peer]
        assert len(b.host.peers()) == b.host.peers()[0].connections == 1


@pytest.mark.usefixtures("everywhere_is_global")
async def test_a_peer_that_is_not_where_it_claims_to_be_fails_the_check() -> None:
    a, b, c = make_end(), make_end(), make_end()
    async with ends(a, b, c):
        await a.ask(b, Ping())
        for address in ("/ip4/127.0.0.1/tcp/1", c.host.addresses()[0].split("/p2p/")[0]):
            a.host.addresses = [address].copy  # type: ignore[method-assign]
            with pytest.raises(PeerUnreachable):
                await b.ask(a, Ping(), is_check=True)
        assert (await a.ask(b, Ping(), is_check=True)).address == place_of(b)


@pytest.mark.usefixtures("everywhere_is_global")
async def test_a_claim_that_leads_nowhere_does_not_hide_the_next(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(kad, "CHECK_STAGGER_S", 0.02)
    a, b = make_end(), make_end()
    async with ends(a, b):
        await a.ask(b, Ping())
        with socket.create_server(("127.0.0.1", 0)) as silent:
            there, dead = place_of(a), f"/ip4/127.0.0.1/tcp/{silent.getsockname()[1]}"
            monkeypatch.setattr(a.host, "addresses", [dead, there].copy)
            assert (await b.ask(a, Ping(), is_check=True)).address == there


async def test_another_implementation_takes_providers_without_an_answer() -> None:
    a, b = make_end(protocol=PUBLIC), make_end(protocol=PUBLIC)
    async with ends(a, b):
        taken, ends_well = list[bytes](), True

        async def take(stream: Stream) -> None:
            parser, found = frames.FrameParser(1000), list[memoryview]()
            while data := await stream.read(1000):
                found += parser.feed(data)
            taken.extend(pb.Message.FromString(bytes(each)).key for each in found)
            if not ends_well:
                raise BadMessage("no")

        b.host.unserve(PUBLIC)
        b.host.serve(PUBLIC, take)
        other = hearsay(b.host.peer, tuple(b.host.addresses()))
        records = tuple(seal_provision(a.signer, name, expires_ms=1) for name in (b"x", b"y"))
        assert (await a.ask(other, AddProviders(records))).answer == Stored(2)
        assert taken == [b"x", b"y"]
        ends_well = False  # js-libp2p resets a stream that we have finished
        assert (await a.ask(other, AddProviders(records[:1]))).answer == Stored(1)
        assert taken == [b"x", b"y", b"x"]
