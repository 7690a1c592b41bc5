"""What a node does with a certificate that it learns of late."""

from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import msgspec
import numpy as np
import pytest

from protocols.modelsync import wire
from protocols.modelsync.driver import LaneDriver, SchemaMismatch
from protocols.modelsync.part import Attachment, Census, LaneShape
from protocols.modelsync.wire import Certificate, Prepare, Ready, result_of
from wire.ids import Signer

T = TypeVar("T")
SIGNERS = sorted((Signer(bytes([n]) * 32) for n in (1, 2)), key=lambda s: s.peer)
ROOT = b"s" * 32


class Alone:
    """An Rpc of a node that has nobody to talk to."""

    peer = SIGNERS[0].peer


async def ignore(certificate: Certificate) -> None:
    """Publish nothing."""


async def in_place(work: Callable[[], T], /) -> T:
    return work()


def prepare(attempt: int) -> Prepare:
    members = [s.peer for s in SIGNERS]
    return Prepare("run", 0, attempt, members[1], members, [1.0, 1.0], [2, 2], "float32", ROOT, 4)


def certify(about: Prepare, shards: list[bytes]) -> Certificate:
    unsigned = about.certificate(result_of(shards))
    body = unsigned.body()
    signatures = tuple(s.sign(wire.CERTIFICATE_TAG, body) for s in SIGNERS)
    return msgspec.structs.replace(unsigned, signatures=signatures)


def holder() -> LaneDriver:
    """A node that was done with attempt 0, and never heard how it ended."""
    rpc: Any = Alone()
    on_commit: Callable[[Certificate], Awaitable[None]] = ignore
    driver = LaneDriver(
        Attachment("run", (LaneShape(4, 8),), "float32", 9, 2, 10.0, np.zeros(4, np.float32)),
        0,
        rpc,
        SIGNERS[0],
        census=Census,
        on_commit=on_commit,
        work=in_place,
    )
    exchange = driver._open_exchange(prepare(0), lambda event: None)
    exchange.mean[:] = 7
    exchange.shards = [b"a" * 32, b"b" * 32]
    driver._held = exchange
    driver.rounds.submit(Ready("run", 0, ROOT, 1.0, 4, "float32"))
    return driver


async def test_the_mean_that_was_certified_is_applied_also_when_the_news_comes_late() -> None:
    driver = holder()
    driver._learn(certify(prepare(0), [b"a" * 32, b"b" * 32]))
    outcome = await driver.outcome(0)
    assert outcome is not None
    assert outcome.certificate is not None
    assert driver.attachment.exchange.tolist() == [7, 7, 7, 7]


@pytest.mark.parametrize(
    ("attempt", "shards"), [(1, [b"a" * 32, b"b" * 32]), (0, [b"a" * 32, b"x" * 32])]
)
async def test_a_mean_of_another_attempt_or_result_is_not_applied(
    attempt: int, shards: list[bytes]
) -> None:
    driver = holder()
    driver._learn(certify(prepare(attempt), shards))
    outcome = await driver.outcome(0)
    assert outcome is not None
    assert outcome.certificate is None
    assert outcome.at_least == 1
    assert driver.attachment.exchange.tolist() == [0, 0, 0, 0]


async def test_a_certificate_without_a_quorum_is_not_believed() -> None:
    driver = holder()
    alone = msgspec.structs.replace(
        prepare(0), members=[SIGNERS[1].peer], weights=[1.0], shards=[4]
    )
    driver._learn(alone.certificate(bytes(32)))
    assert await driver.outcome(0) is None


def test_a_member_with_another_outer_step_is_told_what_is_different() -> None:
    driver = holder()
    with pytest.raises(SchemaMismatch, match="outer_lr"):
        driver.on_ready(SIGNERS[1].peer, Ready("run", 0, ROOT, 1.0, 4, "float32", "outer_lr=0.9"))


def test_a_member_with_another_shape_is_told_what_is_different() -> None:
    driver = holder()
    with pytest.raises(SchemaMismatch, match="4 parameters"):
        driver.on_ready(SIGNERS[1].peer, Ready("run", 0, ROOT, 1.0, 5, "float32"))
