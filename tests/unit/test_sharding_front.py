"""The tokenizer's process: how tokens are spelled one by one, and what it refuses."""

import resource
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from protocols.sharding.front import Front, limit_memory, load_front
from protocols.sharding.wire import SESSION_TOKENS_MAX
from protocols.sharding.worker_wire import Chat, Detokenise, Piece, Spell, Spelled, Text, TokenIds
from tests.unit.sharding_tokenizer import save_tokenizer
from wire.errors import UsageError


def sentence_pieces() -> Front:
    """A tokenizer as Llama 2 has one: blanks are `▁`, rare characters go by bytes."""
    words = ["<unk>", "</s>", "▁", "a", "▁a", *(f"<0x{byte:02X}>" for byte in range(256))]
    vocabulary = {word: number for number, word in enumerate(words)}
    made = Tokenizer(models.BPE(vocabulary, [("▁", "a")], unk_token="<unk>", byte_fallback=True))
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    steps = (decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse())
    made.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)])
    make: Any = PreTrainedTokenizerFast
    return Front(make(tokenizer_object=made, eos_token="</s>"))


def spell(front: Front, ids: list[int]) -> list[tuple[str, bytes]]:
    answer = front.answer(Spell(ids))
    assert isinstance(answer, Spelled)
    return answer.tokens


def ids_of(front: Front, text: str) -> list[int]:
    answer = front.answer(Text(text))
    assert isinstance(answer, TokenIds)
    return answer.ids


def test_pieces_keep_their_blanks_and_bytes_their_value() -> None:
    front = sentence_pieces()
    blank, byte, end = 4, 5 + 0xE2, 1
    assert spell(front, [blank]) == [(" a", b" a")]
    assert spell(front, [byte]) == [("\ufffd", b"\xe2")]
    assert spell(front, [end]) == [("</s>", b"</s>")]


def test_the_bytes_of_a_text_are_those_of_its_tokens(tmp_path: Path) -> None:
    save_tokenizer(tmp_path)
    front = load_front(tmp_path)
    text = "naïve €\n\x7f"
    ids = ids_of(front, text)
    assert b"".join(data for _, data in spell(front, ids)) == text.encode()
    assert front.answer(Detokenise([], ids, final=True)) == Piece(text)
    assert front.answer(Detokenise(ids[:6], ids[6:8], final=False)) == Piece("")


def test_what_no_stage_could_hold_is_refused(tmp_path: Path) -> None:
    save_tokenizer(tmp_path, template=True)
    front = load_front(tmp_path)
    for ask in (Text("x" * (SESSION_TOKENS_MAX + 1)), Chat([("user", "x" * SESSION_TOKENS_MAX)])):
        with pytest.raises(UsageError, match="over 131072"):
            front.answer(ask)


def test_a_template_that_multiplies_its_text_fails_alone(tmp_path: Path) -> None:
    save_tokenizer(tmp_path)
    front = load_front(tmp_path)
    front._tokenizer.chat_template = "{{ 'a' * 20000000000 }}"
    before = resource.getrlimit(resource.RLIMIT_DATA)
    limit_memory()
    try:
        with pytest.raises(UsageError, match="refuses this: MemoryError"):
            front.answer(Chat([("user", "hello")]))
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)
