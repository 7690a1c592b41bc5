"""One node of the DHT by itself, and peers made up for it."""

import functools
import random

from dht.key import KEY_BITS, Key
from dht.messages import (
    Answer,
    Ask,
    Contact,
    Effect,
    Moment,
)
from dht.node import Node
from tests.unit.dht_swarm import WALL_MS, Author

US = Author(10_000)
NOW = Moment(1000.0, WALL_MS)
NAME = b"/shoal/multi/x"


@functools.cache
def author(number: int) -> Author:
    """One whose addresses are private, so that no address group is ever full."""
    return Author(number)


def word(number: int) -> Contact:
    return author(number).contact(WALL_MS)


def node(*, is_server: bool = True, is_public: bool = False) -> Node:
    return Node(US, random.Random(1), is_server=is_server, is_public=is_public)


def knowing(count: int) -> Node:
    """A node with so many in its table."""
    us = node()
    for number in range(count):
        us.table.answered(word(number), word(number).addrs[0], NOW.s)
    return us


def asked(effects: list[Effect]) -> list[Ask]:
    return [effect for effect in effects if isinstance(effect, Ask)]


def later(seconds: float) -> Moment:
    return Moment(NOW.s + seconds, NOW.wall_ms + round(1000 * seconds))


def answer(us: Node, ask: Ask, what: Answer, moment: Moment = NOW) -> None:
    """Its peer answers, at the address that it claims."""
    us.answered(ask.number, what, ask.contact, ask.contact.addrs[0], moment)


def key_at(own: Key, bits_in_common: int, rest: int) -> Key:
    """Return a key that shares exactly `bits_in_common` leading bits with `own`.

    `rest` (any integer, such as a random one) picks the bits after that.
    """
    assert 0 <= bits_in_common < KEY_BITS
    free = KEY_BITS - bits_in_common - 1
    head = (own >> free) ^ 1
    return Key(head << free | rest & ((1 << free) - 1))
