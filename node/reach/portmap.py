"""A port of the home router, forwarded to us: PCP, NAT-PMP or UPnP, whichever it speaks.

Renewed at half its life, asked for again when the network changes or the router has restarted,
given back when the node stops.
"""

import ipaddress
import logging
import secrets
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeVar

import trio

from node.host.addresses import Address
from node.reach import gateway
from node.reach.gateway import Granted
from node.reach.upnp import Igd, find_igd
from wire.errors import BadMessage, PeerUnreachable

T = TypeVar("T")
Via = Literal["pcp", "nat-pmp", "upnp"]

LIFETIME_S = 3600  # of a mapping: a router forgets it an hour after we are gone without a word
RENEW_MIN_S = 60.0  # a router may grant less than it was asked for
AGAIN_S = 600.0  # to look for a router that speaks, after none did; and the longest to a renewal,
# so that a router that restarted, and forgot, is noticed
TRY_S = 0.25  # for an answer of the gateway, doubled for each of TRIES (RFC 6886, 3.1)
TRIES = 3
REMOVE_S = 1.0  # to give a mapping back when we stop
UPNP_S = 10.0  # for a router's web server, which is slow in some

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PortMap:
    """A mapping that stands: who dials `address` reaches our listening port."""

    address: Address
    port: int  # ours
    via: Via
    gateway: str  # the router's address
    until: float  # on trio's clock


class PortMaps:
    """Keeps one mapping of our listening port.

    port: our listening TCP port on IPv4 now, 0 for none. host: our private IPv4 address, None if
    we have none, and then no router is asked.
    """

    def __init__(self, port: Callable[[], int], host: Callable[[], str | None]) -> None:
        self._port, self._host = port, host
        self._nonce = secrets.token_bytes(12)  # names our mapping to the router (RFC 6887, 11.2)
        self._igd: Igd | None = None
        # A thread whose router answers drop by drop never ends: it must not be joined by others.
        self._one_thread = trio.CapacityLimiter(1)
        self._again = trio.Event()
        self.current: PortMap | None = None
        self.tried: dict[Via, str] = {}  # what each way said, for people
        self.changed = trio.lowlevel.ParkingLot()

    def refresh(self) -> None:
        """The network has changed: ask now."""
        self._again.set()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep a mapping until cancelled, then give it back."""
        task_status.started()
        try:
            while True:
                self._again = trio.Event()
                await self._update()
                with trio.move_on_after(self._wait_s()):
                    await self._again.wait()
        finally:
            with trio.move_on_after(REMOVE_S, shield=True):
                await self._remove()

    def _wait_s(self) -> float:
        if self.current is None:
            return AGAIN_S
        left_s = self.current.until - trio.current_time()
        return min(max(left_s / 2, RENEW_MIN_S), AGAIN_S)

    async def _update(self) -> None:
        before, port, host = self.current, self._port(), self._host()
        self.tried.clear()
        found = await self._ask(port, host) if port and host else None
        if found is None and before is not None and before.until > trio.current_time() and host:
            return log.debug("portmap.not_renewed tried=%s", self.tried)  # it may yet be
        self.current = found
        if (before and before.address) != (found and found.address):
            log.info("portmap %s", found.address if found else f"none: {self.tried}")
            self.changed.unpark_all()
        return None

    async def _ask(self, port: int, host: str) -> PortMap | None:
        """Ask in the way that worked before, else in each."""
        wanted = self.current.address.port if self.current else port
        router = gateway.default_gateway()
        if router is None:
            self.tried["pcp"] = "no default gateway is known"
        elif answer := await self._ask_gateway(router, host, port, wanted):
            return self._map(*answer, port, router)
        try:
            with trio.fail_after(UPNP_S):
                granted = await trio.to_thread.run_sync(
                    self._ask_igd,
                    host,
                    port,
                    wanted,
                    abandon_on_cancel=True,
                    limiter=self._one_thread,
                )
        except (PeerUnreachable, trio.TooSlowError) as error:
            self.tried["upnp"] = str(error) or f"no answer within {UPNP_S:.0f} s"
            return None
        return self._map(granted, "upnp", port, router or "")

    def _map(self, granted: Granted, via: Via, port: int, router: str) -> PortMap:
        self.tried[via] = "granted"
        until = trio.current_time() + granted.lifetime_s
        address = Address("ip4", granted.external_host, granted.external_port)
        return PortMap(address, port, via, router, until)

    async def _ask_gateway(
        self, router: str, host: str, port: int, wanted: int
    ) -> tuple[Granted, Via] | None:
        """PCP, and NAT-PMP if the router is of that age; None if it grants nothing."""
        request = gateway.pcp_map(self._nonce, host, port, wanted, LIFETIME_S)
        answer = await _exchange(router, request, lambda d: gateway.read_pcp(d, self._nonce, port))
        if isinstance(answer, Granted):
            return self._checked(answer, "pcp")
        self.tried["pcp"] = answer.reason if answer else "no answer"
        if answer is None or not answer.is_older:
            return None
        external = await _exchange(router, gateway.natpmp_external(), gateway.read_natpmp_external)
        if isinstance(external, str):
            request, known = gateway.natpmp_map(port, wanted, LIFETIME_S), external
            answer = await _exchange(
                router, request, lambda d: gateway.read_natpmp_map(d, port, known)
            )
            if isinstance(answer, Granted):
                return self._checked(answer, "nat-pmp")
        else:
            answer = external
        self.tried["nat-pmp"] = answer.reason if answer else "no answer"
        return None

    def _checked(self, granted: Granted, via: Via) -> tuple[Granted, Via] | None:
        if ipaddress.ip_address(granted.external_host).version == 4:
            return granted, via
        self.tried[via] = "granted an IPv6 address for an IPv4 one"
        return None

    def _ask_igd(self, host: str, port: int, wanted: int) -> Granted:
        self._igd = self._igd if self._igd and self._igd.lan_host == host else find_igd(host)
        try:
            granted = self._igd.map(port, wanted, LIFETIME_S)
            if ipaddress.ip_address(granted.external_host).version == 4:
                return granted
            raise PeerUnreachable(f"its external address is {granted.external_host}")
        except (PeerUnreachable, ValueError) as error:
            self._igd = None  # look for it anew the next time
            raise PeerUnreachable(str(error)) from error

    async def _remove(self) -> None:
        found, self.current = self.current, None
        if found is None:
            return
        host = self._host()
        if found.via == "upnp" and self._igd is not None:
            port = found.address.port
            await trio.to_thread.run_sync(
                self._igd.unmap, port, abandon_on_cancel=True, limiter=self._one_thread
            )
        elif found.via == "pcp" and host is not None:
            request = gateway.pcp_map(self._nonce, host, found.port, 0, 0)
            await _exchange(found.gateway, request, bytes)
        elif found.via == "nat-pmp":
            await _exchange(found.gateway, gateway.natpmp_map(found.port, 0, 0), bytes)


async def _exchange(router: str, request: bytes, read: Callable[[bytes], T]) -> T | None:
    """Ask the gateway until it answers sense; None if it does not."""
    sock = trio.socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with sock:
        try:
            await sock.connect((router, gateway.PORT))  # so that only its answers come in
            for number in range(TRIES):
                with trio.move_on_after(TRY_S * 2**number):
                    await sock.send(request)
                    while True:
                        try:
                            data: bytes = await sock.recv(gateway.ANSWER_MAX + 1)
                            return read(data)
                        except BadMessage as error:
                            log.debug("portmap.nonsense from=%s %s", router, error)
        except OSError as error:  # nobody listens there, or there is no way to it
            log.debug("portmap.no_gateway %s %s", router, error)
    return None
