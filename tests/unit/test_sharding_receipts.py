"""Receipts of a session: signed, of that session, and in agreement with each other."""

from dataclasses import replace
from typing import Any

import msgspec
import pytest
import torch

from protocols.sharding.audit import Opinion, Verdict, decide
from protocols.sharding.codecs import decode, encode
from protocols.sharding.proofs import Prover
from protocols.sharding.receipts import Ended, Fault, Leg, check, sign
from protocols.sharding.rows import ids_to_rows
from protocols.sharding.wire import Receipt, Sampling, Work
from wire.ids import PeerId, Signer

SIGNERS = [Signer(bytes([number]) * 32) for number in (1, 2, 3)]
PEERS = [signer.peer for signer in SIGNERS]
ENTRY = PeerId("entry")
PROMPT, PICKS = list(range(10, 50)), [7, 8, 9]
COUNT = len(PROMPT) + len(PICKS) - 1
CODECS = ["ids", "float16", "int8", "picks"]
HIDDEN = 64


def proofs(hidden: torch.Tensor, codec: str) -> list[bytes]:
    codec = "float32" if codec == "picks" else codec
    rows = encode(codec, hidden)
    prover = Prover()
    prover.add(0, rows, decode(codec, rows, HIDDEN))
    return prover.proofs()


def works(*, noise: float = 0.0, count: int = COUNT) -> list[Work]:
    """What three honest stages say; `noise`: of the second one's output, as it was taken."""
    ids = Prover()
    ids.add(0, ids_to_rows([*PROMPT, *PICKS][:count]), None)
    outputs = [torch.randn(count, HIDDEN, generator=_seed(k)) for k in range(3)]
    taken = outputs[1] * (1 + noise * torch.randn(count, HIDDEN, generator=_seed(9)))
    inputs = [ids.proofs(), proofs(outputs[0], "float16"), proofs(taken, "int8")]
    return [
        Work(
            session=bytes(16),
            model="ab" * 32,
            entry=ENTRY,
            start=2 * k,
            end=2 * k + 2,
            dtype="float32",
            takes=CODECS[k],
            gives=CODECS[k + 1],
            base=0,
            position=count,
            inputs=inputs[k],
            outputs=proofs(outputs[k], CODECS[k + 1]),
            picks=[] if k < 2 else list(enumerate(PICKS, len(PROMPT))),
        )
        for k in range(3)
    ]


def _seed(number: int) -> torch.Generator:
    return torch.Generator().manual_seed(number)


def ended(said: list[Work], *, has_replaced: bool = False) -> Ended:
    legs = [
        Leg(PEERS[k], 2 * k, 2 * k + 2, CODECS[k], CODECS[k + 1], sign(SIGNERS[k], work))
        for k, work in enumerate(said)
    ]
    return Ended(
        entry=ENTRY,
        session=bytes(16),
        name="tiny",
        model="ab" * 32,
        dtype="float32",
        hidden_size=HIDDEN,
        legs=legs,
        sampling=Sampling(),
        prompt=PROMPT,
        picks=PICKS,
        has_replaced=has_replaced,
    )


def faults(said: list[Work], **options: bool) -> list[tuple[int, bool]]:
    return [(fault.index, fault.is_link) for fault in check(ended(said, **options)).faults]


def changed(index: int, **changes: Any) -> list[Work]:
    said = works()
    said[index] = msgspec.structs.replace(said[index], **changes)
    return said


def test_honest_receipts_have_no_fault() -> None:
    checked = check(ended(works()))
    assert checked.faults == []
    assert [claim is not None for claim in checked.claims] == [True] * 3


@pytest.mark.parametrize("base", [16, 32])
def test_who_hung_up_behind_a_reused_prefix_got_honest_receipts_of_nothing(base: int) -> None:
    none = {"inputs": Prover(base).proofs(), "outputs": Prover(base).proofs(), "picks": []}
    said = [msgspec.structs.replace(w, base=base, position=base, **none) for w in works()]
    assert check(replace(ended(said), picks=[])).faults == []


@pytest.mark.parametrize(
    "changes",
    [
        {"session": bytes(15) + b"x"},
        {"model": "cd" * 32},
        {"entry": "somebody"},
        {"dtype": "bfloat16"},
        {"start": 1},
        {"end": 5},
        {"takes": "float32"},
        {"gives": "float32"},
        {"position": COUNT - 1},
        {"position": COUNT + 1},
        {"base": 1},
        {"base": COUNT + 5},
        {"inputs": []},
        {"outputs": [b"", b""]},
    ],
)
def test_a_receipt_of_something_else_is_the_fault_of_who_signed_it(changes: Any) -> None:
    assert faults(changed(1, **changes)) == [(1, False)]


def test_a_receipt_must_be_signed_by_the_stage_itself() -> None:
    session = ended(works())
    body = session.legs[1].receipt.work if session.legs[1].receipt else b""
    for receipt in (
        sign(SIGNERS[0], works()[1]),
        Receipt(body, SIGNERS[1].sign("another-domain", body)),
        Receipt(body + b"\x00", SIGNERS[1].sign("shoal-sharding-receipt", body + b"\x00")),
        Receipt(b"", b""),
    ):
        legs = [*session.legs]
        legs[1] = replace(legs[1], receipt=receipt)
        found = check(replace(session, legs=legs))
        assert [(fault.index, fault.is_link) for fault in found.faults] == [(1, False)]
        assert found.claims[1] is None


def test_a_missing_receipt_is_no_fault_yet() -> None:
    session = ended(works())
    legs = [replace(leg, receipt=None) for leg in session.legs]
    assert check(replace(session, legs=legs)).faults == []


def test_two_that_say_different_things_of_the_rows_between_them_are_at_odds() -> None:
    assert faults(works(noise=0.1)) == [(2, True)]
    assert faults(works(noise=3e-5)) == [(2, True)]  # its digest shows it


def test_after_a_replacement_rows_need_only_be_close() -> None:
    assert faults(works(noise=3e-5), has_replaced=True) == []
    assert faults(works(noise=0.1), has_replaced=True) == [(2, True)]


def test_other_ids_than_were_sent_and_other_picks_than_came_are_seen_at_once() -> None:
    other = Prover()
    other.add(0, ids_to_rows([*PROMPT, *PICKS][:COUNT][::-1]), None)
    assert faults(changed(0, inputs=other.proofs())) == [(0, False)]
    at = len(PROMPT)
    for picks in ([(at, 7), (at + 1, 1), (at + 2, 9)], [(at, 7)], []):
        assert faults(changed(2, picks=picks)) == [(2, False)]


def test_rejected_guesses_in_the_last_rows_are_no_fault() -> None:
    """The last pick's own row was never computed, or holds a guess that was dropped."""
    longer = works(count=COUNT + 3)  # (two of them later than any token of the answer)
    ids = Prover()
    ids.add(0, ids_to_rows([*PROMPT, *PICKS[:-1], 90, 91, 92]), None)
    longer[0] = msgspec.structs.replace(longer[0], inputs=ids.proofs())
    longer[2] = msgspec.structs.replace(longer[2], picks=[*longer[2].picks, (COUNT + 1, 96)])
    assert faults(longer) == []


@pytest.mark.parametrize("tokens", [24, 25, 26])  # the last one's row before, at, behind a window
def test_a_guess_in_the_last_row_of_a_window_is_no_fault(tokens: int) -> None:
    said = [*range(tokens - 4), 1, 2, 3, 4, *range(60, 68)]
    known = said[: tokens + 7]
    stale = Prover()
    stale.add(0, ids_to_rows([*known[:-1], 96, 95]), None)
    work = msgspec.structs.replace(works(count=len(known) + 1)[0], inputs=stale.proofs())
    session = replace(ended([work, *works(count=len(known) + 1)[1:]]), prompt=known[:4])
    session = replace(session, picks=known[4:])
    assert [fault for fault in check(session).faults if fault.index == 0] == []


def test_stages_that_were_left_in_the_middle_of_a_step_are_not_at_odds() -> None:
    """Whoever hangs up leaves the first stage ahead of the last one, with other guesses."""
    ahead, behind = works(), works(count=COUNT + 2)
    for early in (replace(ended(ahead), picks=[], prompt=list(range(COUNT + 9))),):
        checked = check(early)
        assert [fault for fault in checked.faults if fault.is_link or fault.index == 1] == []
    mixed = ended([behind[0], *ahead[1:]])
    assert [fault for fault in check(mixed).faults if fault.is_link] == []


def test_a_fault_names_its_peer() -> None:
    (fault,) = check(ended(changed(0, end=3))).faults
    assert isinstance(fault, Fault)
    assert fault.peer == PEERS[0]


def test_auditors_that_doubt_different_picks_do_not_agree() -> None:
    claim = check(ended(works())).claims[2]
    assert claim is not None
    one, other = (Opinion(PeerId(name), claim.outputs, (41,)) for name in "xy")
    why = "its pick at 41 is not what the logits allow"
    assert decide(claim, [one, other], "float32", ENTRY) == [Verdict(PEERS[2], why)]
    assert decide(claim, [one, replace(other, wrong_picks=(42,))], "float32", ENTRY) is None
