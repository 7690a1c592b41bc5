"""The past of a topic between peers: giving it, and getting it before the live messages come.

Pulled by who comes late, by RPC `channels.history`: gossip carries news only. Nothing is believed
that its author has not signed; how old it is said to be must fit its number, if that is a time.
"""

import logging
from collections.abc import Callable

import msgspec
import trio

from protocols.channels import policy, signing, wire
from protocols.channels.history import BYTES_MAX, COUNT_MAX, HISTORY, Ask, History, Kept, Past
from protocols.channels.replay import age_fits, is_time
from protocols.channels.wire import Message
from wire.errors import BadMessage, DeadlineExceeded, NotFound, ShoalError
from wire.ids import PeerId
from wire.ports import Call, Clock, OffLoop, Rpc

OPEN_TIMEOUT_S = 3.0
ASK_TIMEOUT_S = 5.0  # for all of it, from all who are asked: live messages wait behind it
GIVE_TIMEOUT_S = 30.0  # for all of it, to one peer
MEANWHILE = 64  # messages that may come between the question and the answer, and push others out
ASKED_PEERS = 2  # one may lack some, or leave some out on purpose

log = logging.getLogger(__name__)


class PastService:
    """Gives the past to who asks, and asks for it. `history_of`: what we keep of a topic."""

    def __init__(
        self,
        rpc: Rpc,
        clock: Clock,
        off_loop: OffLoop,
        history_of: Callable[[str], History | None],
    ) -> None:
        self._rpc, self._clock, self._off_loop = rpc, clock, off_loop
        self._history_of = history_of
        self.given = self.invalid = 0  # messages
        rpc.serve_stream(HISTORY, self._give)

    async def complete(self, history: History, peers: list[PeerId], ask: Ask) -> None:
        """Add what peers have of a topic's past to ours, as far as it comes in time.

        Raises ShoalError if nobody answers.
        """
        raw, failures = list[Past](), list[ShoalError]()
        ask = msgspec.structs.replace(ask, last=min(ask.last + MEANWHILE, COUNT_MAX))

        async def ask_one(peer: PeerId) -> None:
            try:
                await self._receive(peer, ask, raw)
            except ShoalError as error:
                failures.append(error)
                log.debug("channels.no_past peer=%s topic=%s %s", peer, ask.topic, error)

        with trio.move_on_after(ASK_TIMEOUT_S):
            async with trio.open_nursery() as nursery:
                for peer in peers[:ASKED_PEERS]:
                    nursery.start_soon(ask_one, peer)
        if failures and not raw:
            raise failures[0]
        history.extend_back(await self._check(ask.topic, raw), self._clock.now())

    async def _receive(self, peer: PeerId, ask: Ask, raw: list[Past]) -> None:
        async with self._rpc.stream(peer, HISTORY, timeout_s=OPEN_TIMEOUT_S) as call:
            await call.send(ask)
            await call.finish()
            count = size_bytes = 0
            async for past in call:
                count, size_bytes = count + 1, size_bytes + len(past.message)
                if count > ask.last or size_bytes > BYTES_MAX:
                    raise BadMessage("more of the past than was asked for")
                raw.append(past)

    async def _check(self, topic: str, raw: list[Past]) -> list[Kept]:
        """Keep what is valid, once each: a forged copy must not hide the true one."""
        now, now_ns = self._clock.now(), self._clock.wall_ms() * 1_000_000
        found, signed = dict[bytes, Kept](), list[tuple[Message, signing.Author]]()
        for past in raw:
            try:
                message = _only_message(past.message)
                author = signing.check_form(message)
                if message.topic != topic or not policy.may_write(topic, author.peer):
                    raise BadMessage("not of this topic")
                number, came_ns = signing.number_of(message), now_ns - past.age_ms * 1_000_000
                if not age_fits(number, past.age_ms, now_ns):
                    raise BadMessage("not as old as it is said to be")
            except BadMessage:
                self.invalid += 1
                continue
            if message.raw not in found:
                at = now - past.age_ms / 1000
                order_ns = number if is_time(number, now_ns) else came_ns
                found[message.raw] = Kept(message.id, author.peer, message, at, order_ns)
                signed.append((message, author))
        are_signed = await self._off_loop(lambda: signing.are_signed(signed))
        self.invalid += are_signed.count(False)
        good = [kept for kept, is_good in zip(found.values(), are_signed, strict=True) if is_good]
        return list({kept.name: kept for kept in good}.values())

    async def _give(self, call: Call[Past, Ask]) -> None:
        """Answer one peer: what it wants of what we keep, oldest first."""
        with trio.move_on_after(GIVE_TIMEOUT_S):
            ask = await call.receive()
            history = self._history_of(ask.topic)
            if history is None:
                raise NotFound("no history of this topic here")
            now = self._clock.now()
            for kept in history.since(now, ask.age_ms / 1000, ask.last):
                age_ms = round((now - kept.at) * 1000)
                await call.send(Past(age_ms, wire.encode(wire.Rpc(messages=(kept.message,)))))
                self.given += 1
            return
        raise DeadlineExceeded(f"the history took more than {GIVE_TIMEOUT_S:g} s")


def _only_message(frame: bytes) -> Message:
    messages = wire.decode(frame).messages
    if len(messages) != 1:
        raise BadMessage(f"{len(messages)} messages where one belongs")
    return messages[0]
