# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false
# (transformers' tokenizers are annotated in part)
"""The tokenizer's process: `python -m protocols.sharding.front --fd N --folder DIR`.

Text to token ids and back, with the model's own chat template. The daemon imports no transformers.
Tokenizers never run programs of the model's folder.
"""

import argparse
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from protocols.sharding import child
from protocols.sharding.programs import refuse_programs
from protocols.sharding.wire import (
    Chat,
    Detokenise,
    FrontAsk,
    Piece,
    Text,
    TokenIds,
    front_ask_decoder,
)
from wire.errors import UsageError

_UNFINISHED = "\ufffd"  # what half a character decodes to


class Front:
    """Answers the daemon's requests with one model's tokenizer."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    def answer(self, request: FrontAsk) -> TokenIds | Piece:
        """Do what is asked. Raises UsageError if the conversation fits no template."""
        match request:
            case Text(text):
                return TokenIds(list(self._tokenizer(text)["input_ids"]))
            case Chat(messages):
                return TokenIds(self._chat(messages))
            case Detokenise():
                return Piece(self._text(request))

    def _chat(self, messages: list[tuple[str, str]]) -> list[int]:
        if self._tokenizer.chat_template is None:
            # A model that was never taught to converse: it goes on with what was said.
            return list(self._tokenizer("\n".join(text for _, text in messages))["input_ids"])
        conversation = [{"role": role, "content": text} for role, text in messages]
        try:
            rendered: str = self._tokenizer.apply_chat_template(
                conversation, add_generation_prompt=True, tokenize=False
            )
        except Exception as error:  # templates raise whatever they like
            raise UsageError(f"the model's chat template refuses this: {error}") from error
        return list(self._tokenizer(rendered, add_special_tokens=False)["input_ids"])

    def _text(self, request: Detokenise) -> str:
        before = self._decode(request.before)
        text = self._decode(request.before + request.fresh)
        if text.endswith(_UNFINISHED) and not request.final:
            return ""
        return text[len(before) :]

    def _decode(self, ids: list[int]) -> str:
        return str(
            self._tokenizer.decode(
                ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
            )
        )


def load_front(folder: Path) -> Front:
    """Load a model's tokenizer. Raises BadMessage if its files name programs."""
    refuse_programs(folder)
    return Front(AutoTokenizer.from_pretrained(folder, trust_remote_code=False))


def main() -> None:
    """Load the tokenizer, then serve the daemon."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fd", type=int, required=True, help="socket to the daemon")
    parser.add_argument("--folder", type=Path, required=True, help="the tokenizer's files")
    options = parser.parse_args()
    daemon = child.Daemon(options.fd)
    daemon.serve(front_ask_decoder, load_front(options.folder).answer)


if __name__ == "__main__":
    main()
