"""Asking a router for a port by UPnP-IGD, with miniupnpc: blocking, so for a worker thread.

Source: UPnP Forum, InternetGatewayDevice:1 and :2, WANIPConnection.
"""

import contextlib
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
        reason = ""
        external = str(self._call(self._upnp.externalipaddress))
        for number in range(1 + TRIES):
            outside = (wanted_port - 1024 + 7 * number) % 64512 + 1024
            # A lease first; old routers know permanent mappings only, which `unmap` ends.
            for lease_s in (lifetime_s, 0):
                ask = (outside, "TCP", self.lan_host, port, _DESCRIPTION, "", lease_s)
                try:
                    if self._upnp.addportmapping(*ask):
                        return Granted(external, outside, lifetime_s)
                except Exception as error:  # miniupnpc raises bare Exception only
                    reason = str(error)
        raise PeerUnreachable(f"UPnP: no port: {reason}")

    def unmap(self, external_port: int) -> None:
        """Give a mapping back; a router that is gone is no error."""
        with contextlib.suppress(Exception):  # miniupnpc raises bare Exception only
            self._upnp.deleteportmapping(external_port, "TCP")

    def _call(self, ask: Any) -> Any:
        try:
            return ask()
        except Exception as error:  # miniupnpc raises bare Exception only
            raise PeerUnreachable(f"UPnP: {error}") from error


def find_igd(host: str) -> Igd:
    """Look for a router on the network of our address `host`. Raises PeerUnreachable."""
    upnp = cast(Any, miniupnpc).UPnP(multicastif=host, discoverdelay=DISCOVER_MS)
    try:
        if not upnp.discover():
            raise PeerUnreachable("UPnP: no router answers")
        upnp.selectigd()
    except PeerUnreachable:
        raise
    except Exception as error:  # miniupnpc raises bare Exception only
        raise PeerUnreachable(f"UPnP: {error}") from error
    return Igd(upnp)
