"""The tokenizer's process: text to tokens and back."""

from pathlib import Path

from protocols.sharding.front import Front
from protocols.sharding.worker_wire import Chat, Detokenise, Piece, Text, TokenIds
from tests.unit.sharding_tokenizer import save_tokenizer


def front(folder: Path, *, template: bool) -> Front:
    return Front(save_tokenizer(folder, template=template))


def test_a_front_turns_text_into_tokens_and_back(tmp_path: Path) -> None:
    tokens = front(tmp_path, template=False).answer(Text("to be or not"))
    assert isinstance(tokens, TokenIds)
    whole = front(tmp_path, template=False).answer(Detokenise([], tokens.ids, True))
    assert whole == Piece("to be or not")


def test_half_a_character_waits_for_its_other_half(tmp_path: Path) -> None:
    worker = front(tmp_path, template=False)
    tokens = worker.answer(Text("a€"))
    assert isinstance(tokens, TokenIds)
    before, fresh = tokens.ids[:1], tokens.ids[1:]
    assert len(fresh) == 3  # one token for each byte of the euro sign
    assert worker.answer(Detokenise(before, fresh[:2], False)) == Piece("")
    assert worker.answer(Detokenise(before, fresh, False)) == Piece("€")
    assert worker.answer(Detokenise(before, fresh[:2], True)) == Piece("\ufffd")


def test_a_conversation_is_put_into_the_models_template(tmp_path: Path) -> None:
    worker = front(tmp_path, template=True)
    asked = worker.answer(Chat([("user", "hi")]))
    plain = worker.answer(Text("<user>hi</user><assistant>"))
    assert asked == plain


def test_without_a_template_a_conversation_is_its_text(tmp_path: Path) -> None:
    worker = front(tmp_path, template=False)
    assert worker.answer(Chat([("system", "a"), ("user", "b")])) == worker.answer(Text("a\nb"))
