"""mDNS: nodes of one swarm on one LAN find each other without configuration.

libp2p's own service (`_p2p._udp.local.`, libp2p/specs, discovery/mdns.md) with the multiaddrs in
`dnsaddr` TXT entries, and one entry more: the swarm's public tag, so that strangers' swarms on the
same LAN ignore each other. Nothing here is proof of anything: admission decides who gets in.

python-zeroconf runs threads and an asyncio loop of its own; a bounded channel brings its findings
to trio.
"""

import ipaddress
import logging
import secrets
import socket
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial

import trio
from zeroconf import (
    Error,
    InterfaceChoice,
    IPVersion,
    ServiceBrowser,
    ServiceInfo,
    ServiceStateChange,
    Zeroconf,
)

from node.host.addresses import parse_address
from node.host.interfaces import interface_hosts
from wire.errors import BadMessage
from wire.ids import PeerId

log = logging.getLogger(__name__)

SERVICE = "_p2p._udp.local."
ADDRESSES_MAX = 8  # in one announcement: it has to fit into one UDP packet
FINDINGS_MAX = 64  # waiting for trio; a LAN that says more is asked again by mDNS itself
RESOLVE_MS = 3000  # for one announcement's TXT record
STOP_S = 1.5  # to say goodbye to the LAN; a daemon does not wait for longer
_TAG = "shoal-swarm"


@dataclass(frozen=True)
class Found:
    """A node of our swarm on this LAN."""

    peer: PeerId
    addresses: tuple[str, ...]


def make_record(tag: str, addresses: Iterable[str]) -> dict[str, str]:
    """Return the TXT entries for what we announce."""
    entries = {_TAG: tag}
    for index, address in enumerate(list(addresses)[:ADDRESSES_MAX], start=1):
        entries["dnsaddr" if index == 1 else f"dnsaddr{index}"] = address
    return entries


def read_record(entries: Mapping[bytes, bytes | None], tag: str, own: PeerId) -> Found | None:
    """Read somebody's TXT entries; None for another swarm, for ourselves, and for nonsense."""
    if entries.get(_TAG.encode()) != tag.encode():
        return None
    peers: set[PeerId] = set()
    addresses: list[str] = []
    for name, value in entries.items():
        if not name.startswith(b"dnsaddr") or value is None or len(addresses) >= ADDRESSES_MAX:
            continue
        try:
            address = parse_address(value.decode("utf-8", "replace"))
        except BadMessage:
            continue
        if address.peer is not None and address.peer != own:
            peers.add(address.peer)
            addresses.append(str(address))
    return Found(peers.pop(), tuple(addresses)) if len(peers) == 1 else None


class Mdns:
    """Announces `addresses()` and reports other nodes of the swarm to `found`.

    tag: the swarm's public name (node.tickets.swarm_tag). interfaces: IP addresses to speak on,
    all of them if none are given.
    """

    def __init__(
        self,
        own: PeerId,
        tag: str,
        addresses: Callable[[], list[str]],
        found: Callable[[Found], None],
        *,
        interfaces: list[str] | None = None,
    ) -> None:
        self._own = own
        self._tag = tag
        self._addresses = addresses
        self._found = found
        self._interfaces = interfaces
        self._again = trio.Event()
        self.dropped = 0

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Announce and listen until cancelled. Without a usable network it says so and waits."""
        # When full, a finding is dropped: the LAN repeats itself.
        send, receive = trio.open_memory_channel[Found](FINDINGS_MAX)
        token = trio.lowlevel.current_trio_token()

        def hand_over(found: Found) -> None:
            try:
                send.send_nowait(found)
            except trio.WouldBlock:
                self.dropped += 1

        def tell(found: Found) -> None:  # runs in zeroconf's thread
            try:
                token.run_sync_soon(hand_over, found)
            except trio.RunFinishedError:
                log.debug("mdns.late peer=%s", found.peer)

        task_status.started()  # announcing takes 1.5 s, since mDNS first asks if the name is free
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._speak, tell)
            async for found in receive:
                self._found(found)

    def refresh(self) -> None:
        """The network has changed: speak on the interfaces that are there now."""
        self._again.set()

    async def _speak(self, tell: Callable[[Found], None]) -> None:
        """Hold mDNS open, anew after each `refresh`: its sockets are bound to interfaces."""
        while True:
            self._again = trio.Event()
            zeroconf: Zeroconf | None = None
            try:
                try:
                    zeroconf = await trio.to_thread.run_sync(self._open, tell)
                    announce = partial(self._announce, zeroconf)
                    await trio.to_thread.run_sync(announce, abandon_on_cancel=True)
                except (OSError, Error, RuntimeError) as error:  # the last: no interface is up
                    log.warning("mdns.off reason=%r", error)
                await self._again.wait()
            finally:
                if zeroconf is not None:
                    with trio.move_on_after(STOP_S, shield=True):
                        await trio.to_thread.run_sync(zeroconf.close, abandon_on_cancel=True)

    def _open(self, tell: Callable[[Found], None]) -> Zeroconf:
        has_ip6 = interface_hosts(socket.AF_INET6) != ["::1"]
        zeroconf = Zeroconf(
            interfaces=self._interfaces or InterfaceChoice.All,
            ip_version=IPVersion.All if has_ip6 and not self._interfaces else IPVersion.V4Only,
        )

        def changed(
            zeroconf: Zeroconf, service_type: str, name: str, state_change: ServiceStateChange
        ) -> None:
            if state_change is ServiceStateChange.Removed:
                return  # the connection tells better whether a peer is there
            try:
                info = zeroconf.get_service_info(service_type, name, RESOLVE_MS)
                found = read_record(info.properties, self._tag, self._own) if info else None
            except Exception as error:  # the edge of zeroconf's thread: strangers' packets
                log.debug("mdns.dropped name=%s error=%r", name, error)
                return
            if found is not None:
                tell(found)

        ServiceBrowser(zeroconf, SERVICE, handlers=[changed])
        return zeroconf

    def _announce(self, zeroconf: Zeroconf) -> None:
        if announcement := self._announcement():
            zeroconf.register_service(announcement)

    def _announcement(self) -> ServiceInfo | None:
        places = [parse_address(text) for text in self._addresses()]
        hosts = [place.host for place in places if place.network.startswith("ip")]
        if not places:
            return None
        name = secrets.token_hex(16)  # the specification asks for a random one
        return ServiceInfo(
            SERVICE,
            f"{name}.{SERVICE}",
            port=places[0].port,
            properties=make_record(self._tag, (str(place) for place in places)),
            server=f"{name}.local.",
            addresses=[ipaddress.ip_address(host).packed for host in hosts],
        )
