"""What the program split.py tells the daemon, which does not import torch."""

import msgspec

RESULT = "split.json"  # its presence says that every other file is whole


class Cut(msgspec.Struct, frozen=True, array_like=True):
    """One written file; it becomes a `Part` once it is a blob."""

    role: str
    block: int
    name: str


class Split(msgspec.Struct, frozen=True):
    """A model that was cut; or, with `error`, the reason why it was not."""

    error: str = ""
    family: str = ""
    n_layers: int = 0
    hidden_size: int = 0
    vocab_size: int = 0
    context: int = 0
    parameters: int = 0
    eos: list[int] = []
    cuts: list[Cut] = []


def read_split(data: bytes) -> Split:
    """Parse `split.json`: our own child wrote it."""
    return msgspec.json.decode(data, type=Split)
