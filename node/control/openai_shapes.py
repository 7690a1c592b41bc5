"""What OpenAI's clients get: the JSON around an answer, whole or in chunks. No I/O."""

import secrets
import time
from dataclasses import dataclass, field

from shoal import models as shapes

FINGERPRINT_CHARS = 12  # of the model's id: the same weights in the same dtype, the same number

Json = dict[str, object]


@dataclass
class Whole:
    """One answer as far as it has come."""

    text: str = ""
    said: list[shapes.Said] = field(default_factory=list[shapes.Said])
    end: shapes.Answer = field(default_factory=lambda: shapes.Answer(""))

    def add(self, piece: shapes.Answer) -> None:
        """Take the next piece."""
        self.text += piece.text
        self.said += piece.said
        self.end = piece


class Shape:
    """The JSON around a piece of answer; chats and texts differ in little."""

    prefix = ""
    kind = ""
    whole_kind = ""

    def __init__(self, name: str, model: str, *, logprobs: bool) -> None:
        self._logprobs = logprobs
        self._head = {
            "id": f"{self.prefix}-{secrets.token_hex(12)}",
            "created": int(time.time()),
            "model": name,
            "system_fingerprint": f"fp_{model[:FINGERPRINT_CHARS]}",
        }

    def document(self, kind: str, choices: list[Json], **more: object) -> Json:
        """Return one JSON document."""
        return {**self._head, "object": kind, "choices": choices, **more}

    def first(self, index: int) -> Json | None:
        """Return what comes before any text of an answer."""
        raise NotImplementedError

    def piece(self, piece: shapes.Answer) -> Json:
        """Return the choice of a chunk."""
        raise NotImplementedError

    def whole(self, index: int, whole: Whole) -> Json:
        """Return the choice of an answer that has ended."""
        raise NotImplementedError


class ChatShape(Shape):
    """/v1/chat/completions."""

    prefix = "chatcmpl"
    kind = "chat.completion.chunk"
    whole_kind = "chat.completion"

    def first(self, index: int) -> Json | None:
        """Return who speaks."""
        delta = {"role": "assistant", "content": ""}
        return {"index": index, "delta": delta, "finish_reason": None, "logprobs": None}

    def piece(self, piece: shapes.Answer) -> Json:
        """Return a delta."""
        delta = {"content": piece.text} if piece.text else {}
        return self._choice(piece.index, "delta", delta, piece.finish_reason, piece.said)

    def whole(self, index: int, whole: Whole) -> Json:
        """Return a message."""
        message = {"role": "assistant", "content": whole.text, "refusal": None}
        return self._choice(index, "message", message, whole.end.finish_reason, whole.said)

    def _choice(
        self, index: int, name: str, value: object, reason: str | None, said: list[shapes.Said]
    ) -> Json:
        logprobs = {"content": [_spoken(each) for each in said]} if self._logprobs else None
        return {"index": index, name: value, "finish_reason": reason, "logprobs": logprobs}


class TextShape(Shape):
    """/v1/completions. `echo` is the prompt, if it is to be repeated."""

    prefix = "cmpl"
    kind = whole_kind = "text_completion"
    echo = ""

    def first(self, index: int) -> Json | None:
        """Return the echo."""
        return self._choice(index, self.echo, None, []) if self.echo else None

    def piece(self, piece: shapes.Answer) -> Json:
        """Return a piece of text."""
        return self._choice(piece.index, piece.text, piece.finish_reason, piece.said)

    def whole(self, index: int, whole: Whole) -> Json:
        """Return the text."""
        return self._choice(index, self.echo + whole.text, whole.end.finish_reason, whole.said)

    def _choice(self, index: int, text: str, reason: str | None, said: list[shapes.Said]) -> Json:
        logprobs = _columns(said) if self._logprobs else None
        return {"index": index, "text": text, "finish_reason": reason, "logprobs": logprobs}


def usage_of(ends: list[shapes.Answer]) -> shapes.Usage | None:
    """Return the usage of several answers to one prompt."""
    usages = [end.usage for end in ends if end.usage is not None]
    if not usages:
        return None
    first, count = usages[0], sum(usage.completion_tokens for usage in usages)
    prompt = first.prompt_tokens
    return shapes.Usage(prompt, count, prompt + count, first.prompt_tokens_details)


def _spoken(said: shapes.Said) -> Json:
    """Return a token as chats tell it."""
    return {
        "token": said.token,
        "logprob": said.logprob,
        "bytes": said.bytes,
        "top_logprobs": said.top,
    }


def _columns(said: list[shapes.Said]) -> Json:
    """Return tokens as completions tell them."""
    return {
        "tokens": [each.token for each in said],
        "token_logprobs": [each.logprob for each in said],
        # Some tokens read alike, such as halves of characters: the likeliest one of them is told.
        "top_logprobs": [{top.token: top.logprob for top in reversed(each.top)} for each in said],
        "text_offset": [each.offset for each in said],
    }
