"""Admission and negotiation: whoever does not know the key gets nowhere, whatever it says."""

import contextlib
from collections.abc import Awaitable, Callable
from dataclasses import replace

import msgpack
import msgspec
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock, memory_stream_pair

from node.host.admission import (
    FRAME_MAX,
    Binding,
    Challenge,
    Hello,
    Proof,
    Welcome,
    admit_as_dialler,
    admit_as_listener,
    decoder,
    prove,
    welcome,
)
from node.host.negotiate import HELLO, accept, select
from wire.codec import decode, encode
from wire.errors import BadMessage, PeerError
from wire.frames import pack
from wire.ids import Signer

KEY, OTHER = b"k" * 32, b"o" * 32
ALICE, BOB = Signer(b"a" * 32).peer, Signer(b"b" * 32).peer
BINDING = Binding(dialler=ALICE, listener=BOB, handshake_hash=b"h" * 32)


class Pipe:
    """One end of a stream in memory that notes what it sent."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self._stream = stream
        self.sent: list[bytes] = []

    async def read(self, n: int | None = None) -> bytes:
        return bytes(await self._stream.receive_some(n))

    async def write(self, data: bytes) -> None:
        self.sent.append(data)
        await self._stream.send_all(data)

    async def close(self) -> None:
        await self._stream.aclose()


def pipes() -> tuple[Pipe, Pipe]:
    one, other = memory_stream_pair()
    return Pipe(one), Pipe(other)


async def outcome(side: Callable[[], Awaitable[None]], pipe: Pipe) -> str:
    try:
        with trio.fail_after(5):
            await side()
    except (PeerError, trio.TooSlowError, trio.BrokenResourceError) as error:
        return type(error).__name__
    finally:
        await pipe.close()
    return "admitted"


async def meet(
    dialler_key: bytes,
    listener_key: bytes,
    dialler_sees: Binding = BINDING,
    listener_sees: Binding = BINDING,
) -> tuple[str, str, Pipe, Pipe]:
    a, b = pipes()
    ends: dict[str, str] = {}

    async def dial() -> None:
        await admit_as_dialler(a, dialler_key, dialler_sees, on_proved=lambda: None)

    async def listen() -> None:
        await admit_as_listener(b, listener_key, listener_sees)
        await welcome(b)

    async def note(name: str, side: Callable[[], Awaitable[None]], pipe: Pipe) -> None:
        ends[name] = await outcome(side, pipe)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(note, "dialler", dial, a)
        nursery.start_soon(note, "listener", listen, b)
    return ends["dialler"], ends["listener"], a, b


async def test_members_admit_each_other(autojump_clock: MockClock) -> None:
    assert (await meet(KEY, KEY))[:2] == ("admitted", "admitted")


@pytest.mark.parametrize(("one", "other"), [(KEY, OTHER), (OTHER, KEY)])
async def test_another_key_is_no_key(one: bytes, other: bytes, autojump_clock: MockClock) -> None:
    assert (await meet(one, other))[:2] == ("NotAdmitted", "NotAdmitted")


@pytest.mark.parametrize(
    "elsewhere",
    [
        replace(BINDING, handshake_hash=b"x" * 32),
        replace(BINDING, dialler=BOB, listener=ALICE),
        replace(BINDING, dialler=BOB),
    ],
    ids=["another connection", "the other direction", "another peer"],
)
async def test_a_proof_is_worth_nothing_elsewhere(
    elsewhere: Binding, autojump_clock: MockClock
) -> None:
    assert (await meet(KEY, KEY, BINDING, elsewhere))[:2] == ("NotAdmitted", "NotAdmitted")


async def test_a_recorded_admission_replayed_is_refused(autojump_clock: MockClock) -> None:
    *_, recorded, _ = await meet(KEY, KEY)
    assert len(recorded.sent) == 2
    attacker, listener = pipes()
    for message in recorded.sent:
        await attacker.write(message)

    async def listen() -> None:
        await admit_as_listener(listener, KEY, BINDING)  # even on the very same connection

    assert await outcome(listen, listener) == "NotAdmitted"


async def test_what_the_listener_says_can_not_be_sent_back_to_it(autojump_clock: MockClock) -> None:
    attacker, listener = pipes()
    result: list[str] = []

    async def listen() -> None:
        await admit_as_listener(listener, KEY, BINDING)

    async def note() -> None:
        result.append(await outcome(listen, listener))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(note)
        await attacker.write(pack(encode(Hello(bytes(32)))))
        challenge = decode((await attacker.read(FRAME_MAX))[1:], decoder, FRAME_MAX)
        assert isinstance(challenge, Challenge)
        await attacker.write(pack(encode(Proof(challenge.proof))))
    assert result == ["NotAdmitted"]


@pytest.mark.parametrize(
    "said",
    [
        b"",
        b"\xff" * 100,
        pack(b"x" * 200),
        pack(encode(Welcome())),
        pack(encode(Proof(bytes(32)))),
        pack(encode(Hello(bytes(32)))) + pack(encode(Welcome())),
        pack(encode(Hello(bytes(32)))) + pack(encode(Proof(bytes(32)))),
        pack(encode(Hello(bytes(32)))),
    ],
)
async def test_a_listener_admits_nobody_who_says_something_else(
    said: bytes, autojump_clock: MockClock
) -> None:
    attacker, listener = pipes()
    await attacker.write(said)
    await attacker.close()

    async def listen() -> None:
        await admit_as_listener(listener, KEY, BINDING)

    assert await outcome(listen, listener) != "admitted"


async def test_a_dialler_trusts_no_listener_that_does_not_know_the_key(
    autojump_clock: MockClock,
) -> None:
    dialler, attacker = pipes()
    result, proved = list[str](), list[bool]()

    async def dial() -> None:
        await admit_as_dialler(dialler, KEY, BINDING, on_proved=lambda: proved.append(True))

    async def note() -> None:
        result.append(await outcome(dial, dialler))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(note)
        await attacker.read(FRAME_MAX)
        # Right in everything but the proof, and it welcomes whatever comes.
        said = pack(encode(Challenge(bytes(32), bytes(32)))) + pack(encode(Welcome()))
        await attacker.write(said)
        assert await attacker.read(FRAME_MAX) == b""  # and gets no proof of ours to use elsewhere
    assert result == ["NotAdmitted"]
    assert not proved


async def test_silence_is_not_waited_out_by_the_machine_itself(autojump_clock: MockClock) -> None:
    _silent, listener = pipes()

    async def listen() -> None:
        await admit_as_listener(listener, KEY, BINDING)

    assert await outcome(listen, listener) == "TooSlowError"


def test_each_part_of_a_proof_counts() -> None:
    proofs = {
        prove(KEY, "dialler", BINDING, b"1" * 32, b"2" * 32),
        prove(OTHER, "dialler", BINDING, b"1" * 32, b"2" * 32),
        prove(KEY, "listener", BINDING, b"1" * 32, b"2" * 32),
        prove(KEY, "dialler", BINDING, b"2" * 32, b"1" * 32),
        prove(KEY, "dialler", BINDING, b"1" * 31, b"1" + b"2" * 32),
        prove(KEY, "dialler", replace(BINDING, dialler=BOB), b"1" * 32, b"2" * 32),
        prove(KEY, "dialler", replace(BINDING, listener=ALICE), b"1" * 32, b"2" * 32),
        prove(KEY, "dialler", replace(BINDING, handshake_hash=b""), b"1" * 32, b"2" * 32),
    }
    assert len(proofs) == 8


@given(st.binary(max_size=200))
def test_any_bytes_as_admission_message(frame: bytes) -> None:
    try:
        message = decode(frame, decoder, FRAME_MAX)
    except BadMessage:
        return
    assert decode(encode(message), decoder, FRAME_MAX) == message


def test_an_independent_reader_reads_the_messages_and_none_is_over_the_limit() -> None:
    messages = (Hello(b"n" * 32), Challenge(b"n" * 32, b"p" * 32), Proof(b"p" * 32), Welcome())
    for message in messages:
        body = encode(message)
        assert len(body) <= FRAME_MAX
        assert msgpack.unpackb(body) == [
            message.__struct_config__.tag,
            *msgspec.structs.astuple(message),
        ]


# Negotiation


async def offers_echo(protocol: str) -> bool:
    return protocol == "/echo"


async def test_both_sides_agree_on_the_first_protocol_that_is_offered(
    autojump_clock: MockClock,
) -> None:
    a, b = pipes()
    found: list[str | None] = []

    async def answer() -> None:
        found.append(await accept(b, offers_echo))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(answer)
        assert await select(a, ["/absent", "/gone", "/echo"]) == "/echo"
    assert found == ["/echo"]


async def test_a_protocol_that_is_not_offered_is_refused_and_tries_are_bounded(
    autojump_clock: MockClock,
) -> None:
    a, b = pipes()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(accept, b, offers_echo)
        assert await select(a, [f"/absent/{n}" for n in range(16)]) is None


@given(st.binary(max_size=400))
def test_any_bytes_to_negotiate(data: bytes) -> None:
    async def main() -> None:
        for head in (b"", b"\x13" + HELLO.encode() + b"\n"):
            a, b = pipes()
            await a.write(head + data)
            await a.close()
            with contextlib.suppress(BadMessage, trio.BrokenResourceError):
                assert await accept(b, offers_echo) in (None, "/echo")

    trio.run(main)


@given(st.binary(max_size=400))
def test_any_bytes_as_answer_to_a_proposal(data: bytes) -> None:
    async def main() -> None:
        for head in (b"", b"\x13" + HELLO.encode() + b"\n"):
            a, b = pipes()
            await a.write(head + data)
            await a.close()
            with contextlib.suppress(BadMessage, trio.BrokenResourceError):
                assert await select(b, ["/echo", "/other"]) in (None, "/echo", "/other")

    trio.run(main)
