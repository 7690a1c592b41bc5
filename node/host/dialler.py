"""Reaching a peer: all its addresses at once, one dial per peer at a time.

In place of libp2p's dialler: facts, network, traps 4 and 5.
"""

import logging
import os
import socket
from collections import Counter
from collections.abc import Iterable
from typing import Protocol

import trio

from node.host.addresses import Address, parse_address
from node.host.admission import NotAdmitted
from node.host.backoff import STAGGER_S, AddressBook
from node.host.carrier import Carrier
from node.host.connection import Connection
from node.host.peers import Peers
from node.host.race import Lanes, race
from node.host.swarm import FencedSwarm
from node.host.tcp import CountedTcp
from node.host.yamux import MuxedConnection
from wire.errors import BadMessage, PeerUnreachable, ShoalError
from wire.faults import OnFailure
from wire.ids import PeerId

log = logging.getLogger(__name__)

CONNECT_S = 5.0  # for one TCP connection: three SYNs
DIAL_S = 10.0  # for all addresses together, Noise included
FLIGHTS_MAX = 2  # that one caller waits for: the first may have been lost by bad luck
FLIGHT_MAX = 32  # addresses in one dial: those of a peer that moved meanwhile, once
NAME_ADDRESSES_MAX = 4  # that a DNS name may stand for
PEERS_MAX = 4096  # whose addresses we remember; at 16 addresses of 100 bytes, 6 MB


_Dialled = tuple[Address, MuxedConnection, Carrier]


class Circuits(Protocol):
    """Makes connections through relays: `node.reach.circuit`."""

    async def dial(self, relay: Address, peer: PeerId) -> Carrier:
        """Ask the relay at an address, which names it, for a circuit. Raises PeerUnreachable."""
        ...


class _Flight:
    """One dial in progress, and everybody who waits for it."""

    def __init__(self) -> None:
        self.landed = trio.Event()
        self.error: ShoalError | None = None
        self.lanes = Lanes[Address]([])
        self.known = set[Address]()  # what it tries, or has tried
        self.is_open = True  # it takes in what is learnt


class Dialler:
    """Knows addresses and makes connections. Give it the nursery that its dials live in."""

    def __init__(self, own: PeerId, swarm: FencedSwarm, peers: Peers) -> None:
        self._own = own
        self._swarm = swarm
        self._peers = peers
        self._books: dict[PeerId, AddressBook] = {}
        self._flights: dict[PeerId, _Flight] = {}
        self.nursery: trio.Nursery | None = None
        self._circuits: Circuits | None = None  # without, relay addresses are of no use
        self._as_relays = Counter[PeerId]()  # peers that we need as such just now

    def use(self, circuits: Circuits) -> None:
        """Dial relay addresses, too."""
        self._circuits = circuits

    def learn(self, peer: PeerId, addresses: Iterable[str], *, is_hearsay: bool = False) -> None:
        """Remember addresses. Malformed ones, and ones of other peers, are dropped.

        is_hearsay: another peer says so. They come last, and where nothing else is known.
        """
        good: list[str] = []
        for text in addresses:
            try:
                address = parse_address(text)
            except BadMessage as error:
                log.debug("address.dropped peer=%s %s", peer, error)
                continue
            if address.relay == peer or address.is_unspecified or not address.port:
                continue
            if address.peer in (None, peer):
                good.append(str(address.with_peer(peer)))
        if good and peer != self._own:
            book = self._book(peer)
            (book.hear if is_hearsay else book.learn)(good)
            if (flight := self._flights.get(peer)) and flight.is_open:
                self._plan(peer, flight)  # what it tries may lead nowhere, and be slow to say so

    def addresses_of(self, peer: PeerId) -> list[str]:
        """Addresses known for a peer, best first."""
        book = self._books.get(peer)
        return book.plan() if book else []

    def forget(self, peer: PeerId) -> None:
        """Drop what we know of where a peer is."""
        self._books.pop(peer, None)

    async def reach(self, peer: PeerId) -> Connection:
        """Return an admitted connection, dialling if there is none.

        Raises PeerUnreachable with the reason for each address, or NotAdmitted. A caller that is
        cancelled leaves the dial to the others who wait for it.
        """
        if peer == self._own:
            raise PeerUnreachable("that is this node itself")
        flights = 0
        while (connection := self._peers.best(peer)) is None:
            flights += 1
            if flights > FLIGHTS_MAX:
                raise PeerUnreachable(f"{peer} ends each connection at once")
            if self.nursery is None:
                raise PeerUnreachable("the host is not running")
            flight = self._flights.get(peer)
            if flight is None:
                flight = self._flights[peer] = _Flight()
                self.nursery.start_soon(self._fly, peer, flight)
            await flight.landed.wait()
            if flight.error is not None:
                if flights < FLIGHTS_MAX and self._new_for(peer, flight):
                    continue  # they were learnt when this one was failing already
                raise type(flight.error)(str(flight.error))
        await trio.lowlevel.checkpoint()
        return connection

    async def _fly(self, peer: PeerId, flight: _Flight) -> None:
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._until_connected, peer, nursery.cancel_scope)
                try:
                    await self._dial(peer, flight)
                finally:
                    flight.is_open = False
                nursery.cancel_scope.cancel()
        except* ShoalError as errors:
            flight.error = _first(errors)
        except* Exception as errors:  # a bug, or libp2p's: this dial's only
            log.exception("dial.failed peer=%s", peer)
            flight.error = PeerUnreachable(repr(errors.exceptions[0]))
        finally:
            del self._flights[peer]
            flight.landed.set()

    async def _until_connected(self, peer: PeerId, dialling: trio.CancelScope) -> None:
        while self._peers.best(peer) is None:
            await self._peers.changed.park()
        dialling.cancel()  # it was faster than we

    async def _dial(self, peer: PeerId, flight: _Flight) -> None:
        self._plan(peer, flight)
        if not flight.known:
            raise PeerUnreachable(f"no address known for {peer}")
        place = self._swarm.gate.enter(None)
        if place is None:
            raise PeerUnreachable("too many connections here")
        with OnFailure(place.leave):
            won: _Dialled | None = None
            with trio.move_on_after(DIAL_S):
                won = await race(flight.lanes, self._attempt, _discard, stagger_s=STAGGER_S)
            if won is None:
                raise PeerUnreachable(f"no address of {peer} answered within {DIAL_S:.0f} s")
            address, muxed, carrier = won
            self._book(peer).worked(str(address))
            connection = await self._swarm.adopt(muxed, carrier, place)
        await connection.settled.wait()
        if not connection.is_admitted:
            raise NotAdmitted(f"{peer}: {connection.refusal}")

    async def _attempt(self, address: Address) -> _Dialled:
        assert address.peer is not None
        carrier = await self._carrier(address)
        return address, await self._swarm.secure(carrier, address.peer), carrier

    async def _carrier(self, address: Address) -> Carrier:
        assert address.peer is not None
        if address.relay is None:
            return CountedTcp(await _connect(address), self._swarm.traffic)
        if self._circuits is None:
            raise PeerUnreachable("no circuits here")
        self._as_relays[address.relay] += 1
        try:
            return await self._circuits.dial(address, address.peer)
        finally:
            self._as_relays[address.relay] -= 1
            if not self._as_relays[address.relay]:
                del self._as_relays[address.relay]  # or every relay ever named stays

    def _plan(self, peer: PeerId, flight: _Flight) -> None:
        """Dial what is new: direct addresses, and beside them those through relays; but a relay is
        only of use to us directly.
        """
        new = self._new_for(peer, flight)
        flight.known.update(new)
        for is_relayed in (False, True):
            flight.lanes.add([one for one in new if (one.relay is not None) == is_relayed])

    def _new_for(self, peer: PeerId, flight: _Flight) -> list[Address]:
        plan = [parse_address(text) for text in self.addresses_of(peer)]
        new = [address for address in plan if address not in flight.known]
        if self._as_relays[peer]:
            new = [address for address in new if address.relay is None]
        return new[: max(0, FLIGHT_MAX - len(flight.known))]

    def _book(self, peer: PeerId) -> AddressBook:
        book = self._books.pop(peer, None) or AddressBook()
        self._books[peer] = book  # last: the one learned of longest ago falls out first
        if len(self._books) > PEERS_MAX:
            del self._books[next(iter(self._books))]
        return book


async def _connect(address: Address) -> trio.SocketStream:
    """Open a TCP connection. Raises PeerUnreachable."""
    try:
        with trio.fail_after(CONNECT_S):
            found = await trio.socket.getaddrinfo(
                address.host, address.port, family=address.family, type=socket.SOCK_STREAM
            )
            error: OSError = OSError("the name has no address")
            for family, kind, protocol, _, place in found[:NAME_ADDRESSES_MAX]:
                sock = trio.socket.socket(family, kind, protocol)
                try:
                    with OnFailure(sock.close):
                        await sock.connect(place)
                except OSError as caught:
                    error = caught
                else:
                    return trio.SocketStream(sock)
            raise error
    except trio.TooSlowError:
        raise PeerUnreachable(f"no answer within {CONNECT_S:.0f} s") from None
    except OSError as error:
        # Not strerror: trio puts the address in it, which the caller names already.
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise PeerUnreachable(reason) from error


def _discard(result: _Dialled) -> None:
    result[2].abort()


def _first(errors: BaseExceptionGroup[ShoalError]) -> ShoalError:
    found = errors.exceptions[0]
    return _first(found) if isinstance(found, BaseExceptionGroup) else found
