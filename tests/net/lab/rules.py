"""The nftables rules of each type of router.

| type | mapping (RFC 4787, 4.1) | filtering (5) | how |
|---|---|---|---|
| open | no NAT | none | routed |
| fw | no NAT | address and port | routed, stateful |
| fullcone | endpoint-independent | none | masquerade; a map of external ports, learnt, leads in |
| restricted | endpoint-independent | address | the same, for addresses that were talked to |
| portrestricted | endpoint-independent | address and port | plain masquerade |
| symmetric | per destination, random port | address and port | masquerade to random ports |
| symseq | per destination, next port | address and port | masquerade to a counter |
| cgnat, cgnat-sym | as portrestricted, symmetric | address and port | two routers in a row |
| udpblock | as portrestricted, no UDP | address and port | UDP dropped |

Every router has a device `wan` and a bridge `lan`.
"""

import random
from typing import Literal, get_args

Kind = Literal[
    "open", "fw", "fullcone", "restricted", "portrestricted", "symmetric", "symseq",
    "cgnat", "cgnat-sym", "udpblock",
]  # fmt: skip
KINDS: tuple[Kind, ...] = get_args(Kind)
ROUTED: tuple[Kind, ...] = ("open", "fw")
CARRIERS: dict[Kind, Kind] = {"cgnat": "portrestricted", "cgnat-sym": "symmetric"}
Inbound = Literal["drop", "reject"]  # what a packet from outside meets that nobody asked for
IPv6 = Literal["open", "firewalled"]

SEQUENCE = 2048  # ports that a sequential router counts through before it begins again
PORT_FIRST, PORT_LAST = 20_000, 60_000
LEARNT = 16_384  # mappings that a router with a map of its own can hold
LEARNT_S = 120  # seconds of silence after which it forgets one


def router(kind: Kind, *, inbound: Inbound, ipv6: IPv6 | None, preserve_ports: bool = True) -> str:
    """Return all rules of one router; loading them forgets what the ones before had learnt."""
    tables = "table inet lab\ndelete table inet lab\ntable ip lab-nat\ndelete table ip lab-nat\n"
    tables += _filters(kind, _refuse(inbound), ipv6)
    if kind not in ROUTED:
        tables += _translation(kind, preserve_ports=preserve_ports)
    return tables


def _refuse(inbound: Inbound) -> str:
    if inbound == "drop":
        return 'iifname "wan" drop'
    return 'iifname "wan" meta l4proto tcp reject with tcp reset\n  iifname "wan" reject'


def _filters(kind: Kind, refuse: str, ipv6: IPv6 | None) -> str:
    forward = ["ct state established,related accept", 'iifname "lan" oifname "lan" accept']
    if kind == "udpblock":
        forward.append('oifname "wan" meta nfproto ipv4 meta l4proto udp drop')
    if ipv6 == "open":
        forward.append("meta nfproto ipv6 accept")
    if kind == "open":
        forward.append("meta nfproto ipv4 accept")
    forward += ["ct status dnat accept", refuse]
    return f"""table inet lab {{
 chain forward {{
  type filter hook forward priority 0
  {_lines(forward)}
 }}
 chain input {{
  type filter hook input priority 0
  ct state established,related accept
  meta l4proto {{ icmp, ipv6-icmp }} accept
  {refuse}
 }}
}}
"""


def _translation(kind: Kind, *, preserve_ports: bool) -> str:
    return f"""table ip lab-nat {{
{_cone(kind) if kind in ("fullcone", "restricted") else ""}
 chain outward {{
  type nat hook postrouting priority 100
  {_masquerade(kind, preserve_ports=preserve_ports)}
 }}
}}
"""


def _masquerade(kind: Kind, *, preserve_ports: bool) -> str:
    if kind == "symmetric":
        return 'oifname "wan" masquerade fully-random'
    if kind == "symseq":
        first = random.randrange(PORT_FIRST, PORT_LAST - SEQUENCE)
        ports = _numbered(SEQUENCE, first)
        choice = f"numgen inc mod {SEQUENCE} map {{ {ports} }}"
    elif not preserve_ports:
        ports = _numbered(SEQUENCE, PORT_FIRST)
        choice = f"jhash ip saddr . th sport mod {SEQUENCE} map {{ {ports} }}"
    else:
        return 'oifname "wan" masquerade'
    return f"""oifname "wan" meta l4proto {{ tcp, udp }} masquerade to :{choice}
  oifname "wan" masquerade"""


def _numbered(count: int, first: int) -> str:
    return ", ".join(f"{number} : {first + number}" for number in range(count))


def _cone(kind: Kind) -> str:
    """Return the maps of a router that lets in, by protocol, what it has a mapping for."""
    text = ""
    for protocol in ("tcp", "udp"):
        known = f"ip saddr . {protocol} dport @{protocol}-peers " if kind == "restricted" else ""
        text += f""" map {protocol}-ports {{
  type inet_service : ipv4_addr . inet_service
  size {LEARNT}
  flags dynamic, timeout
  timeout {LEARNT_S}s
 }}
 set {protocol}-peers {{
  type ipv4_addr . inet_service
  size {LEARNT}
  flags dynamic, timeout
  timeout {LEARNT_S}s
 }}
 chain {protocol}-learn {{
  type filter hook postrouting priority 110
  oifname "wan" ct direction original meta l4proto {protocol} update @{protocol}-ports {{ \
{protocol} sport : ct original ip saddr . ct original proto-src }}
  oifname "wan" ct direction original meta l4proto {protocol} update @{protocol}-peers {{ \
ip daddr . {protocol} sport }}
 }}
 chain {protocol}-inward {{
  type nat hook prerouting priority -100
  iifname "wan" {known}dnat ip to {protocol} dport map @{protocol}-ports
 }}
"""
    return text


def core(cut: list[tuple[str, str]]) -> str:
    """Return the rules of the middle: no private address crosses it, nor do the `cut` pairs."""
    pairs = "".join(f'  iifname "{a}" oifname "{b}" drop\n' for a, b in cut)
    return f"""table inet lab
delete table inet lab
table inet lab {{
 chain forward {{
  type filter hook forward priority -10
  ip saddr {{ 10.0.0.0/8, 100.64.0.0/10, 172.16.0.0/12, 192.168.0.0/16 }} drop
{pairs} }}
}}
"""


def _lines(rules: list[str]) -> str:
    return "\n  ".join(rules)
