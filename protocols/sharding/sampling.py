"""How the last stage picks tokens from logits, and whether another's pick can be right.

The draw is a number of its own for each (seed, position), and picks by the cumulated probabilities
in the order of token ids: whoever repeats a step picks the same token, and whoever recomputes it
with logits that differ in their last digits can say which picks those allow. Needs torch.
"""

import hashlib

import torch
from torch import Tensor

from protocols.sharding.wire import Pick, Sampling

# What honest logits of one row differ by, as a share of their largest magnitude: other batches,
# other processors. Measured: 3e-6 of float32 (facts: 3e-5 of 12); the mantissas of the others are
# 2^-11 and 2^-8, and a few layers add up.
TOLERANCES = {"float32": 1e-4, "float16": 1e-2, "bfloat16": 5e-2}


def pick(logits: Tensor, sampling: Sampling, position: int) -> Pick:
    """Pick the token at `position` of a session from the float32 logits [vocabulary] before it."""
    if sampling.temperature == 0.0:
        token = int(logits.argmax())
    else:
        ends = _probabilities(logits, sampling.temperature, sampling.top_p).cumsum(0)
        drawn = _draw(sampling.seed, position) * float(ends[-1])
        token = int(torch.searchsorted(ends, drawn, right=True).clamp_max(len(ends) - 1))
    if sampling.logprobs < 0:
        return Pick(token)
    logs = logits.log_softmax(0)
    top = logs.topk(min(sampling.logprobs, len(logs)))
    likeliest = zip(top.indices, top.values, strict=True)
    pairs = [(int(other), float(value)) for other, value in likeliest]
    return Pick(token, float(logs[token]), pairs)


def allows(logits: Tensor, sampling: Sampling, position: int, token: int, dtype: str) -> bool:
    """Whether a stage that computes in `dtype` can honestly have picked `token` at `position`.

    logits: float32 [vocabulary], as recomputed here.
    """
    if not 0 <= token < len(logits):
        return False
    slack = TOLERANCES[dtype] * float(logits.abs().max())
    if sampling.temperature == 0.0:
        return float(logits[token]) >= float(logits.max()) - slack
    # Moving all logits by the slack moves each probability, and their sums, by this factor at most.
    moved = min(1.0, slack / sampling.temperature)
    drawn = _draw(sampling.seed, position)
    for top_p in {sampling.top_p, *_near(sampling.top_p, moved)}:
        probabilities = _probabilities(logits, sampling.temperature, top_p)
        ends = probabilities.cumsum(0) / probabilities.sum()
        start = float(ends[token - 1]) if token else 0.0
        if probabilities[token] > 0 and start - moved <= drawn <= float(ends[token]) + moved:
            return True
    return False


def _near(top_p: float, moved: float) -> tuple[float, ...]:
    """Return the least and the largest share that rounding may have made of it."""
    return (top_p * (1 - moved), min(1.0, top_p * (1 + moved))) if top_p < 1.0 else ()


def _probabilities(logits: Tensor, temperature: float, top_p: float) -> Tensor:
    """Return float64 [vocabulary]; outside of the likeliest tokens that make up `top_p`, zeros."""
    logits = logits.double()
    # (The difference first: the least temperatures make infinity of all but zero.)
    probabilities = ((logits - logits.max()) / temperature).softmax(0)
    if top_p < 1.0:
        ordered, order = probabilities.sort(descending=True, stable=True)
        before = ordered.cumsum(0) - ordered  # the mass of all more likely tokens
        probabilities[order[before >= top_p]] = 0.0
        probabilities[order[0]] = ordered[0]  # whatever rounding says
    return probabilities


def _draw(seed: int, position: int) -> float:
    """Return the number in [0, 1) that decides at this position."""
    digest = hashlib.sha256(f"{seed}/{position}".encode()).digest()
    return (int.from_bytes(digest[:8], "little") >> 11) / (1 << 53)
