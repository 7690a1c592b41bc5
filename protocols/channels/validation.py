"""What a new message must stand before it is delivered here and passed on.

Cheap checks first; then signatures, many at a time; then what is charged to the author, who has
proven by now that it wrote it. REJECT is for what every node would refuse: it counts against who
passed it on. IGNORE is for our own opinion; what is ignored is seen, so before the signature is
checked only what goes by author and number, which are the message's name, may lead to it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import trio

from protocols.channels import policy, reference, signing
from protocols.channels.channel import Channel
from protocols.channels.effects import Validate, Verdict
from protocols.channels.replay import Replays
from protocols.channels.signing import Author
from protocols.channels.wire import Message
from wire.errors import BadMessage
from wire.ports import OffLoop


@dataclass(frozen=True, slots=True)
class Checked:
    """The outcome for one message; ACCEPT is for the handler to confirm if there is one."""

    news: Validate
    verdict: Verdict
    author: Author | None


class Validation:
    """Checks messages of the channels that this node holds."""

    def __init__(self, channels: Mapping[str, Channel], wall_ns: Callable[[], int]) -> None:
        self._channels, self._wall_ns = channels, wall_ns
        self.replays = Replays()

    def check(self, news: list[Validate]) -> list[Checked]:
        """Check a few messages, in order: each signature takes 70 us."""
        found = [self._judge(item) for item in news]
        return self._charge_all(found, signing.are_signed(_signed(found)))

    async def check_many(self, news: list[Validate], off_loop: OffLoop) -> list[Checked]:
        """Check messages, their signatures off the loop. It is not cancelled half way."""
        found = [self._judge(item) for item in news]
        with trio.CancelScope(shield=True):  # a thread, for 20 ms
            signed = await off_loop(lambda: signing.are_signed(_signed(found)))
            return self._charge_all(found, signed)
        raise AssertionError("a shield ends no block")

    def _charge_all(self, found: list[Checked], are_signed: list[bool]) -> list[Checked]:
        signed = iter(are_signed)
        return [item if item.author is None else self._charge(item, next(signed)) for item in found]

    def _judge(self, news: Validate) -> Checked:
        """Check all that needs no signature."""
        message = news.message
        try:
            author = signing.check_form(message)
            reference.unpack(message.data)
        except BadMessage:
            return Checked(news, Verdict.REJECT, None)
        if not policy.may_write(message.topic, author.peer):
            return Checked(news, Verdict.REJECT, None)
        channel = self._channels.get(message.topic)
        number = signing.number_of(message)
        if channel is None or not self.replays.is_fresh(message.author, number, self._wall_ns()):
            return Checked(news, Verdict.IGNORE, None)
        return Checked(news, Verdict.ACCEPT, author)

    def _charge(self, checked: Checked, is_signed: bool) -> Checked:
        message, author = checked.news.message, checked.author
        if not is_signed or author is None:
            return Checked(checked.news, Verdict.REJECT, None)
        self.replays.remember(message.author, signing.number_of(message), self._wall_ns())
        channel = self._channels.get(message.topic)
        if (
            channel is None
            or not channel.wants(author.peer)  # only now: a forgery must not be what is seen
            or not channel.rates.allow(author.peer, len(message.data), trio.current_time())
        ):
            return Checked(checked.news, Verdict.IGNORE, None)
        return checked


def _signed(found: list[Checked]) -> list[tuple[Message, Author]]:
    return [(item.news.message, item.author) for item in found if item.author is not None]
