"""Families of architectures whose stages, loaded from a cut model, are the whole model bit for bit.

`python -m benchmarks.answer_exact` prints one JSON object a line. Tiny random models of the tests
(tests/unit/sharding_models.py); logits after a prompt and of each greedy token after it, float32.
"""

import tempfile
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.report import progress, report
from protocols.sharding.split import split
from protocols.sharding.stage import Stage, load_stage
from tests.unit.sharding_models import (
    FAMILIES,
    LAYERS,
    PROMPT,
    cuts,
    prefill_and_decode,
    save_model,
)

STAGES_MAX = 6
STEPS = 8


def run_chain(stages: list[Stage]) -> list[Tensor]:
    """Return the logits of a chain of stages: after the prompt, then of each greedy token."""
    caches = [stage.new_cache() for stage in stages]
    inputs, found = torch.tensor([PROMPT]), list[Tensor]()
    for _ in range(STEPS):
        value, logits = inputs, None
        for stage, cache in zip(stages, caches, strict=True):
            result = stage.forward(value, cache, logits=int(stage.end == stage.n_layers))
            value, logits = result.hidden, result.logits
        assert logits is not None
        found.append(logits[:, -1])
        inputs = found[-1].argmax(-1, keepdim=True)
    return found


def is_exact(family: str, folder: Path) -> bool:
    """Cut a model of the family and run it as 1 to 6 stages."""
    expected = prefill_and_decode(save_model(folder / "model", family), steps=STEPS)
    split(folder / "model", folder / "parts")
    for count in range(1, min(STAGES_MAX, LAYERS) + 1):
        found = run_chain([load_stage(folder / "parts", *span) for span in cuts(count)])
        if not all(torch.equal(a, b) for a, b in zip(found, expected, strict=True)):
            progress(f"{family}: {count} stages compute something else")
            return False
    return True


def main() -> None:
    """Count them."""
    exact = 0
    for family in FAMILIES:
        with tempfile.TemporaryDirectory(prefix="bench-") as folder:
            try:
                exact += is_exact(family, Path(folder))
            except Exception as error:  # a boundary: the other families are not its fault
                progress(f"{family}: {type(error).__name__}: {error}")
    report(
        *("answer.exact_families", [float(exact)], f"of {len(FAMILIES)} families, 1 to 6 stages"),
        better="higher",
        goal=float(len(FAMILIES)),
    )


if __name__ == "__main__":
    main()
