"""The route of `shoal netcheck`: how this node is reached, and what is to be done about it."""

from node.control.api import Api, Request
from node.host.addresses import parse_address
from node.host.views import PeerView
from node.parts import Node
from node.reach.checks import Facts, checks, path_of
from node.reach.views import Punch, ReachView
from shoal import reach as shapes


class NetCheckRoute:
    """The handler."""

    def __init__(self, node: Node) -> None:
        self._node = node

    async def netcheck(self, _: Request) -> shapes.NetCheck:
        """Say how we are reached."""
        facts = self._facts()
        view, listening = facts.view, facts.listening
        return shapes.NetCheck(
            reachability=view.verdict,
            ip4=view.ip4,
            ip6=view.ip6,
            mapping=view.behaviour,
            outside=view.outside,
            addresses=[str(one) for one in listening],
            announced=[shapes.Announced(one.address, one.origin) for one in view.announced],
            evidence=view.evidence,
            port_mappings=[
                shapes.PortMapping(one.address, one.via, one.gateway, one.left_s)
                for one in view.port_maps
            ],
            port_mapping_tried=view.port_maps_tried,
            relays=[
                shapes.HeldRelay(one.relay, facts.name(one.relay), one.host, one.rtt_ms, one.left_s)
                for one in view.held
            ],
            relay_service=_serving(view),
            paths=[_path(facts, one) for one in facts.peers],
            punches=[_punch(facts, one) for one in view.punches],
            clock_skew_ms=facts.clock_skew_ms,
            checks=checks(facts),
        )

    def _facts(self) -> Facts:
        node = self._node
        net = node.loaded.config.net
        return Facts(
            view=node.reach(),
            listening=[parse_address(one) for one in node.host.addresses()],
            peers=node.host.peers(),
            names={member.peer: member.name for member in node.membership.members()},
            clock_skew_ms=node.clock_skew_ms(),
            uptime_s=node.life.uptime_s,
            mdns=net.mdns,
            port_mapping=net.port_mapping,
        )


def routes(api: Api, node: Node) -> None:
    """Declare the route."""
    api.add(
        "GET",
        "/v1/netcheck",
        NetCheckRoute(node).netcheck,
        summary="How this node is reached, checked",
        reply=shapes.NetCheck,
    )


def _serving(view: ReachView) -> shapes.RelayService:
    relay = view.relay
    return shapes.RelayService(
        relay.is_on, relay.reservations, relay.circuits, relay.bytes, relay.refused
    )


def _punch(facts: Facts, one: Punch) -> shapes.Punch:
    name = facts.name(one.peer)
    return shapes.Punch(one.peer, name, one.outcome, one.tries, one.took_s, one.age_s)


def _path(facts: Facts, one: PeerView) -> shapes.Path:
    via = facts.name(one.relay) if one.relay else ""
    return shapes.Path(one.peer, facts.name(one.peer), path_of(one), one.rtt_ms, via)
