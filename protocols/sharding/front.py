# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false
# (transformers' tokenizers are annotated in part)
"""The tokenizer's process: `python -m protocols.sharding.front --fd N --folder DIR`.

Text to token ids and back, with the model's own chat template. The daemon imports no transformers.
Tokenizers never run programs of the model's folder.
"""

import argparse
import re
import resource
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from protocols.sharding import child
from protocols.sharding.programs import refuse_programs
from protocols.sharding.wire import SESSION_TOKENS_MAX
from protocols.sharding.worker_wire import (
    Chat,
    Detokenise,
    FrontAsk,
    Piece,
    Spell,
    Spelled,
    Text,
    TokenIds,
    front_ask_decoder,
)
from wire.errors import UsageError

MEMORY_BYTES = 4 << 30  # ten times what the largest tokenizers take: a template may ask for any
_UNFINISHED = "\ufffd"  # what half a character decodes to
_BYTE = re.compile(r"<0x([0-9A-F]{2})>")  # how SentencePiece names the token of one byte
_ANCHOR = "a"  # before a token that is spelled alone: many decoders drop a leading blank


class Front:
    """Answers the daemon's requests with one model's tokenizer."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._anchor = list(tokenizer(_ANCHOR, add_special_tokens=False)["input_ids"])

    def answer(self, request: FrontAsk) -> TokenIds | Piece | Spelled:
        """Do what is asked. Raises UsageError if the conversation fits no template."""
        match request:
            case Text(text):
                return self._ids(text, special=True)
            case Chat(messages):
                return self._chat(messages)
            case Detokenise():
                return Piece(self._text(request))
            case Spell(ids):
                return Spelled([self._spell(token) for token in ids])

    def _ids(self, text: str, *, special: bool) -> TokenIds:
        ids = list(self._tokenizer(text, add_special_tokens=special)["input_ids"])
        if len(ids) > SESSION_TOKENS_MAX:
            raise UsageError(f"the prompt has {len(ids)} tokens, over {SESSION_TOKENS_MAX}")
        return TokenIds(ids)

    def _chat(self, messages: list[tuple[str, str]]) -> TokenIds:
        if self._tokenizer.chat_template is None:
            # A model that was never taught to converse: it goes on with what was said.
            return self._ids("\n".join(text for _, text in messages), special=True)
        conversation = [{"role": role, "content": text} for role, text in messages]
        try:
            rendered: str = self._tokenizer.apply_chat_template(
                conversation, add_generation_prompt=True, tokenize=False
            )
        except Exception as error:  # templates raise whatever they like
            why = str(error) or type(error).__name__
            raise UsageError(f"the model's chat template refuses this: {why}") from error
        return self._ids(rendered, special=False)

    def _text(self, request: Detokenise) -> str:
        before = self._decode(request.before)
        text = self._decode(request.before + request.fresh)
        if text.endswith(_UNFINISHED) and not request.final:
            return ""
        return text[len(before) :]

    def _spell(self, token: int) -> tuple[str, bytes]:
        before = self._decode(self._anchor, special=True)
        text = self._decode([*self._anchor, token], special=True)[len(before) :]
        if _UNFINISHED not in text:
            return text, text.encode("utf-8", "replace")
        return text, _bytes_of(str(self._tokenizer.convert_ids_to_tokens(token)))

    def _decode(self, ids: list[int], *, special: bool = False) -> str:
        return str(
            self._tokenizer.decode(
                ids, skip_special_tokens=not special, clean_up_tokenization_spaces=False
            )
        )


def _bytes_of(piece: str) -> bytes:
    """Return the bytes of a vocabulary's entry that is no whole text: `<0xE2>`, or GPT-2's letters
    for bytes.
    """
    named = _BYTE.fullmatch(piece)
    if named is not None:
        return bytes([int(named[1], 16)])
    if all(letter in _BYTE_OF_LETTER for letter in piece):
        return bytes(_BYTE_OF_LETTER[letter] for letter in piece)
    return piece.encode("utf-8", "replace")


def _letters() -> dict[str, int]:
    """Return GPT-2's alphabet: printable bytes stand for themselves, others from U+0100 on."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = [byte for byte in range(256) if byte not in plain]
    found = {chr(byte): byte for byte in plain}
    return found | {chr(0x100 + index): byte for index, byte in enumerate(rest)}


_BYTE_OF_LETTER = _letters()


def load_front(folder: Path) -> Front:
    """Load a model's tokenizer. Raises BadMessage if its files name programs."""
    refuse_programs(folder)
    return Front(AutoTokenizer.from_pretrained(folder, trust_remote_code=False))


def limit_memory() -> None:
    """Let this process fail, not the machine, when a template multiplies its texts."""
    _, most = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY_BYTES, most))


def main() -> None:
    """Load the tokenizer, then serve the daemon."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fd", type=int, required=True, help="socket to the daemon")
    parser.add_argument("--folder", type=Path, required=True, help="the tokenizer's files")
    options = parser.parse_args()
    daemon = child.Daemon(options.fd)
    limit_memory()
    daemon.serve(front_ask_decoder, load_front(options.folder).answer)


if __name__ == "__main__":
    main()
