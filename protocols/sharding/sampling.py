"""How the last stage picks a token from logits. Needs torch."""

import hashlib

import torch
from torch import Tensor

from protocols.sharding.wire import Sampling


def pick(logits: Tensor, sampling: Sampling, position: int) -> int:
    """Return a token id.

    logits: float32 [vocabulary]. position: that of the new token in its session; with the seed it
    fixes the choice, so a stage that replaces a lost one goes on with the same tokens.
    """
    if sampling.temperature == 0.0:
        return int(logits.argmax())
    probabilities = (logits.double() / sampling.temperature).softmax(-1)
    if sampling.top_p < 1.0:
        ordered, order = probabilities.sort(descending=True, stable=True)
        before = ordered.cumsum(-1) - ordered  # the mass of all more likely tokens
        probabilities[order[before >= sampling.top_p]] = 0.0
    digest = hashlib.sha256(f"{sampling.seed}/{position}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
    return int(torch.multinomial(probabilities, 1, generator=generator))
