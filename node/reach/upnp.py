"""Asking a router for a port by UPnP-IGD, with miniupnpc: blocking, so for a worker thread.

Source: UPnP Forum, InternetGatewayDevice:1 and :2, WANIPConnection.
"""

import contextlib
from collections.abc import Callable
from typing import Any, cast

import miniupnpc  # pyright: ignore[reportMissingImports]

from node.reach.gateway import Granted
from wire.errors import PeerUnreachable

DISCOVER_MS = 1500  # for the router to answer on the LAN; those that do take some 100 ms
TRIES = 4  # ports beside the wished one, if that is somebody else's
_DESCRIPTION = "shoal"


class Igd:
    """One router that speaks UPnP, found by `find_igd`."""

    def __init__(self, upnp: Any) -> None:
        self._upnp = upnp
        self.lan_host = str(upnp.lanaddr)

    def map(self, port: int, wanted_port: int, lifetime_s: int) -> Granted:
        """Map a TCP port, or renew it. Raises PeerUnreachable with the router's reason."""
        external = str(_asked(self._upnp.externalipaddress))
        refusal = PeerUnreachable("no port")
        for number in range(1 + TRIES):
            outside = (wanted_port - 1024 + 7 * number) % 64512 + 1024
            # A lease first; old routers know permanent mappings only, which `unmap` ends.
            for lease_s in (lifetime_s, 0):
                ask = (outside, "TCP", self.lan_host, port, _DESCRIPTION, "", lease_s)
                try:
                    if _asked(self._upnp.addportmapping, *ask):
                        return Granted(external, outside, lifetime_s)
                except PeerUnreachable as error:
                    refusal = error
        raise refusal

    def unmap(self, external_port: int) -> None:
        """Give a mapping back; a router that is gone is no error."""
        with contextlib.suppress(PeerUnreachable):
            _asked(self._upnp.deleteportmapping, external_port, "TCP")


def find_igd(host: str) -> Igd:
    """Look for a router on the network of our address `host`. Raises PeerUnreachable."""
    upnp = cast(Any, miniupnpc).UPnP(multicastif=host, discoverdelay=DISCOVER_MS)
    try:
        found = _asked(upnp.discover)
    except PeerUnreachable:  # "Success", says miniupnpc, if nobody is there
        found = 0
    if not found:
        raise PeerUnreachable("no router answers")
    _asked(upnp.selectigd)
    return Igd(upnp)


def _asked(ask: Callable[..., Any], *what: object) -> Any:
    """Call miniupnpc, which raises bare Exception only. Raises PeerUnreachable."""
    try:
        return ask(*what)
    except Exception as error:
        raise PeerUnreachable(str(error)) from error
