"""The data of an attempt between real hosts: over lanes, and through calls where there are none."""

import itertools
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import numpy as np
import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from protocols.modelsync.aggregate import aggregator_named, weighted_mean
from protocols.modelsync.codecs import Vector, codec_named
from protocols.modelsync.exchange import Exchange, open_exchange
from protocols.modelsync.memory import Memory
from protocols.modelsync.news import Complete, Fault
from protocols.modelsync.shards import weighted_shards
from protocols.modelsync.wire import REDUCE, Piece, Prepare
from protocols.modelsync.work import in_threads
from tests.daemon.bulk_hosts import Peer, lane_threads
from wire.ports import Call

ELEMENTS = 2_000_003  # a last block that is short; shards of several pieces
PATIENCE_S = 30.0


@dataclass
class Member:
    """A host in attempts that all others are told of too."""

    number: int
    peer: Peer = field(default_factory=Peer)
    memory: Memory = field(default_factory=Memory)
    exchange: Exchange | None = None
    fault: Fault | None = None
    ended: trio.Event = field(default_factory=trio.Event)  # its last attempt, well or by a fault
    result: Vector = field(default_factory=lambda: np.zeros(ELEMENTS, np.float32))

    @property
    def vector(self) -> Vector:
        return np.random.default_rng(self.number).standard_normal(ELEMENTS, dtype=np.float32)

    async def take_part(self, prepare: Prepare) -> None:
        send, news = trio.open_memory_channel[Complete | Fault](64)
        self.exchange = open_exchange(
            prepare,
            rpc=self.peer.rpc,
            bulk=self.peer.bulk,
            contribution=self.vector,
            work=in_threads(),
            news=send.send_nowait,
            aggregator=aggregator_named("mean"),
            memory=self.memory,
        )
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.exchange.run)
            event = await news.receive()
            if isinstance(event, Fault):
                self.fault = event
                self.ended.set()
                await trio.sleep_forever()  # the streams stay: others are not to miss us
        self.exchange.close()
        self.exchange.take(self.result)
        self.ended.set()

    async def serve(self, call: Call[Piece, Piece]) -> None:
        first = await call.receive()
        assert self.exchange is not None
        await self.exchange.serve(call, first)


@asynccontextmanager
async def members(count: int) -> AsyncGenerator[list[Member]]:
    """Hosts that are all connected with each other, in member order."""
    all_ = [Member(number) for number in range(count)]
    async with trio.open_nursery() as nursery:
        for index, member in enumerate(all_):
            member.peer.rpc.serve_stream(REDUCE, member.serve)
            await nursery.start(member.peer.run)
            for other in all_[:index]:
                await member.peer.host.connect(other.peer.host.addresses()[0])
        yield sorted(all_, key=lambda member: member.peer.id)
        nursery.cancel_scope.cancel()


def prepare_of(all_: list[Member], codec: str, round_: int, topology: str = "all") -> Prepare:
    count, ids = len(all_), [member.peer.id for member in all_]
    shards = weighted_shards(ELEMENTS, [0] * count, [True] * count)
    return Prepare(
        "test", round_, 0, ids[0], ids, [1.0] * count, shards, codec, bytes(32), ELEMENTS,
        topology=topology,
    )  # fmt: skip


async def average(all_: list[Member], prepare: Prepare) -> None:
    with trio.fail_after(PATIENCE_S):
        async with trio.open_nursery() as nursery:
            for member in all_:
                member.ended = trio.Event()
                nursery.start_soon(member.take_part, prepare)
            for member in all_:
                await member.ended.wait()
            nursery.cancel_scope.cancel()


@pytest.mark.parametrize("has_lanes", [True, False])
async def test_rounds_end_in_the_same_bits_with_lanes_and_without(has_lanes: bool) -> None:
    async with members(3) as all_:
        for member in [] if has_lanes else all_:
            member.peer.no_lanes()
        vectors = [member.vector for member in all_]
        for round_, codec in enumerate(("float32", "int8", "float32", "topk")):
            await average(all_, prepare_of(all_, codec, round_))
            named = codec_named(codec)
            seen = [named.decode(named.encode(vector), ELEMENTS) for vector in vectors]
            mean = named.encode_mean(weighted_mean(seen, [1.0] * 3))
            expected = named.decode(mean, ELEMENTS)
            for member in all_:
                assert member.fault is None
                assert np.array_equal(member.result, expected)
        assert bool(lane_threads()) == has_lanes
    assert lane_threads() == []


async def test_a_cancelled_round_leaves_no_transfer_and_the_next_goes_well() -> None:
    async with members(2) as all_:
        with trio.move_on_after(0.02):
            await average(all_, prepare_of(all_, "float32", 0))
        for member in all_:
            assert member.exchange is not None
            member.exchange.close()
        await average(all_, prepare_of(all_, "float32", 1))
        expected = weighted_mean([member.vector for member in all_], [1.0, 1.0])
        for member in all_:
            assert np.array_equal(member.result, expected)
        await wait_all_tasks_blocked(0.05)
        for member, other in itertools.permutations(all_, 2):
            assert member.peer.bulk.pool.desk(other.peer.id).is_idle


async def test_when_a_member_is_gone_the_others_say_so() -> None:
    async with members(3) as all_:
        prepare = prepare_of(all_, "float32", 0)
        await average(all_[:2], prepare)
        for member in all_[:2]:
            assert member.fault is not None
            assert member.fault.accused == all_[2].peer.id
