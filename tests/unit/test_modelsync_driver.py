"""What a node does with a certificate it learns of late, and with what it finds in the store."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import msgspec
import numpy as np
import pytest
import trio

from protocols.modelsync import wire
from protocols.modelsync.accounts import Accounts
from protocols.modelsync.driver import LaneDriver
from protocols.modelsync.herald import SchemaMismatch
from protocols.modelsync.part import Attachment, Census, LaneShape
from protocols.modelsync.wire import Bound, Certificate, Prepare, Ready, result_of
from wire.ids import Signer

T = TypeVar("T")
SIGNERS = sorted((Signer(bytes([n]) * 32) for n in (1, 2, 3)), key=lambda s: s.peer)
ROOT = b"s" * 32
SHARDS = [b"a" * 32, b"b" * 32]


class Alone:
    """An Rpc of a node that has nobody to talk to."""

    peer = SIGNERS[0].peer


@dataclass
class Result:
    """An exchange that is complete."""

    shards: list[bytes]
    bytes_in: int = 3
    bytes_out: int = 4
    rate: int = 5
    prepare: Prepare = field(default_factory=lambda: prepare(0))

    def take(self, into: Any, sent: Any) -> None:
        into[:] = 7
        if sent is not None:
            sent[:] = 5


@dataclass
class Holder:
    """A node that was done with attempt 0 of round 0, and never heard how it ended."""

    sent: Any = None
    published: list[Certificate] = field(default_factory=list[Certificate])
    stored: list[Certificate] = field(default_factory=list[Certificate])
    driver: LaneDriver = field(init=False)

    def __post_init__(self) -> None:
        rpc: Any = Alone()
        lanes = (LaneShape(2, 4), LaneShape(4, 8))
        buffer = np.zeros(6, np.float32)
        attachment = Attachment("run", lanes, "float32", 9, 2, 10.0, buffer, sent=self.sent)
        self.driver = LaneDriver(
            attachment,
            1,
            rpc,
            SIGNERS[0],
            census=Census,
            on_commit=self.publish,
            stored=lambda electorate: self.stored,
            accounts=Accounts(),
            work=in_place,
        )
        self.driver.submit(0, ROOT, 1.0)
        held: Any = Result(SHARDS)
        self.driver._hold(prepare(0).bound(result_of(SHARDS)), held)

    async def publish(self, certificate: Certificate) -> None:
        self.published.append(certificate)

    @asynccontextmanager
    async def driving(self) -> AsyncGenerator[LaneDriver]:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.driver.run)
            await trio.testing.wait_all_tasks_blocked()
            yield self.driver
            nursery.cancel_scope.cancel()

    @property
    def buffer(self) -> list[float]:
        return self.driver.attachment.exchange.tolist()


async def in_place(work: Any, /) -> Any:
    return work()


def prepare(attempt: int, *, adopt: Bound | None = None, round_: int = 0) -> Prepare:
    members = [s.peer for s in SIGNERS[:2]]
    return Prepare(
        "run", round_, attempt, members[1], members, [1.0, 1.0], [2, 2], "float32", ROOT, 4,
        lane=1, adopt=adopt,
    )  # fmt: skip


def certify(about: Prepare, shards: list[bytes]) -> Certificate:
    unsigned = about.certificate(result_of(shards))
    body = unsigned.body()
    signatures = tuple(s.sign(wire.CERTIFICATE_TAG, body) for s in SIGNERS[:2])
    return msgspec.structs.replace(unsigned, signatures=signatures)


@pytest.mark.parametrize("attempt", [0, 3])
async def test_a_result_that_was_certified_is_applied_also_when_the_news_comes_late(
    attempt: int,
) -> None:
    holder = Holder()
    adopt = holder.driver.rounds.bound if attempt else None
    certificate = certify(prepare(attempt, adopt=adopt), SHARDS)
    async with holder.driving() as driver:
        driver._learn(certificate)
        outcome = await driver.outcome(1)
    assert outcome is not None
    assert outcome.certificate == certificate
    assert holder.buffer == [0, 0, 7, 7, 7, 7], "only the slice of its lane"
    assert holder.published == [certificate]
    assert driver.next_round == 1
    assert driver.rounds.bound is None


async def test_what_others_decoded_of_ours_is_given_too() -> None:
    holder = Holder(sent=np.zeros(6, np.float32))
    async with holder.driving() as driver:
        driver._learn(certify(prepare(0), SHARDS))
        assert await driver.outcome(1) is not None
    assert driver.attachment.sent is not None
    assert driver.attachment.sent.tolist() == [0, 0, 5, 5, 5, 5]


async def test_a_round_with_another_result_leaves_us_behind() -> None:
    holder = Holder()
    async with holder.driving() as driver:
        driver._learn(certify(prepare(0), [b"a" * 32, b"x" * 32]))
        outcome = await driver.outcome(1)
    assert outcome is not None
    assert outcome.certificate is None
    assert outcome.at_least == 1
    assert holder.buffer == [0] * 6


async def test_a_later_round_leaves_us_behind_though_the_result_is_the_same() -> None:
    holder = Holder()
    async with holder.driving() as driver:
        driver._learn(certify(prepare(0, round_=2), SHARDS))
        outcome = await driver.outcome(1)
    assert outcome is not None
    assert outcome.certificate is None
    assert outcome.at_least == 3


def unbelievable() -> list[Certificate]:
    good = certify(prepare(0), SHARDS)
    replace = msgspec.structs.replace
    alone = replace(prepare(0), members=[SIGNERS[1].peer], weights=[1.0], shards=[4])
    return [
        alone.certificate(bytes(32)),
        replace(good, signatures=good.signatures[::-1]),
        replace(good, lane=0),
        replace(good, run="other"),
    ]


@pytest.mark.parametrize("certificate", unbelievable())
async def test_a_certificate_that_proves_nothing_of_this_lane_is_not_believed(
    certificate: Certificate,
) -> None:
    holder = Holder()
    async with holder.driving() as driver:
        driver._learn(certificate)
        assert await driver.outcome(0) is None


async def test_the_store_tells_how_a_round_ended_that_nobody_in_reach_knows(
    autojump_clock: Any,
) -> None:
    holder = Holder()
    first = certify(prepare(0), SHARDS)
    holder.stored = [first]
    async with holder.driving() as driver:
        outcome = await driver.outcome(10)
    assert outcome is not None
    assert outcome.certificate == first


async def test_the_store_tells_that_the_others_are_rounds_ahead(autojump_clock: Any) -> None:
    holder = Holder()
    holder.stored = [certify(prepare(0), SHARDS), certify(prepare(0, round_=1), SHARDS)]
    async with holder.driving() as driver:
        outcome = await driver.outcome(10)
    assert outcome is not None
    assert outcome.certificate is None
    assert outcome.at_least == 2


async def test_what_we_are_bound_to_is_told_to_who_is_ready_and_outlives_a_new_submit() -> None:
    driver = Holder().driver
    theirs = Ready("run", 0, ROOT, 1.0, 4, "float32", "lanes=2", lane=1)
    heard = driver.on_ready(SIGNERS[1].peer, theirs)
    assert heard.ready is not None
    assert heard.ready.bound == prepare(0).bound(result_of(SHARDS))
    driver.submit(0, ROOT, 0.0)
    assert driver.rounds.bound is not None
    driver.rounds.withdraw()
    driver.submit(0, ROOT, 1.0)
    assert driver.rounds.bound is not None
    driver.submit(1, ROOT, 1.0)
    assert driver.rounds.bound is None


async def test_the_first_round_after_a_return_is_that_of_a_newcomer() -> None:
    driver = Holder().driver
    driver.adopt(certify(prepare(0), SHARDS))
    again = LaneDriver(
        driver.attachment,
        1,
        driver._rpc,
        SIGNERS[0],
        census=Census,
        on_commit=Holder().publish,
        stored=lambda electorate: [],
        accounts=Accounts(),
        work=in_place,
    )
    again.adopt(driver.rounds.certificate)
    for round_, is_new in ((1, True), (1, True), (2, False)):
        again.submit(round_, ROOT, 1.0)
        assert again.rounds.mine is not None
        assert again.rounds.mine.is_new is is_new


@pytest.mark.parametrize(
    ("settings", "elements", "words"),
    [("lanes=2 outer_lr=0.9", 4, "outer_lr"), ("lanes=2", 5, "4 parameters")],
)
async def test_a_member_with_another_shape_is_told_what_is_different(
    settings: str, elements: int, words: str
) -> None:
    driver = Holder().driver
    ready = Ready("run", 0, ROOT, 1.0, elements, "float32", settings, lane=1)
    with pytest.raises(SchemaMismatch, match=words):
        driver.on_ready(SIGNERS[1].peer, ready)
