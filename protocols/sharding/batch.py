# mypy: disable-error-code="no-untyped-call"
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false
# (transformers is annotated in part)
"""Single rows and drafts of several sessions, as one forward.

What the weights do is done for all rows together; the attention of each row is over the cache of
its own session, whose keys and values the caches hand over as lists. So nothing is padded, copied
or kept in step: any sessions may join any step. It works where a family calls attention by
transformers' interface, which the worker tries when it loads (`can_batch`). Needs torch.
"""

import sys
from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.cache_utils import Cache, DynamicLayer

from protocols.sharding.caches import StageCache
from protocols.sharding.stage import Result, Stage

TOLERANCE = 1e-3  # of the largest magnitude; other matrix kernels in float32 make 1e-6
_TRIAL_ROWS = (5, 9, 2)  # in the caches of the trial's sessions
_TRIAL_DRAFTS = (1, 1, 3)  # rows of their steps
_NAME = "sharding_together"


def forward_together(
    stage: Stage, inputs: Tensor, caches: Sequence[StageCache], *, logits: bool
) -> Result:
    """Rows of several sessions, all of the same layers: inputs [rows, 1] or [rows, 1, hidden].

    caches: of each row that of its session; the rows of one follow each other. If it fails, some
    layers have seen the rows: `truncate` the caches to where they were.
    """
    span = caches[0].start, caches[0].end
    seen = Counter[StageCache]()
    places = list[list[int]]()
    for cache in caches:
        places.append([cache.position + seen[cache]])
        seen[cache] += 1
    positions = torch.tensor(places, device=stage.device)
    entries = [cache.layers.layers for cache in caches]
    past = Cache(layers=[_Together(of_layer) for of_layer in zip(*entries, strict=True)])
    with _Attending(stage):
        result = stage.run(inputs, past, positions, span=span, logits=int(logits), exact=False)
    for cache in caches:
        cache.position += 1
    return result


def can_batch(stage: Stage) -> bool:
    """Whether several rows together give what each gives alone, tried with random ones."""
    draw = torch.Generator().manual_seed(0)
    wanted = int(stage.end == stage.n_layers)
    alone: list[StageCache] = []
    if not stage.new_cache().truncates or _turns_by_length(stage):
        return False
    try:
        for rows in _TRIAL_ROWS:
            alone.append(stage.new_cache())
            stage.forward(random_rows(stage, rows, draw), alone[-1])
        together = [cache.fork(cache.position) for cache in alone]
        for _ in range(2):  # what the first step leaves in the caches is used by the second
            inputs = [random_rows(stage, rows, draw) for rows in _TRIAL_DRAFTS]
            singly = [
                stage.forward(row, cache, logits=wanted)
                for row, cache in zip(inputs, alone, strict=True)
            ]
            of_rows = [
                cache
                for cache, row in zip(together, inputs, strict=True)
                for _ in range(row.shape[1])
            ]
            column = torch.cat(inputs, dim=1).transpose(0, 1)
            found = forward_together(stage, column, of_rows, logits=wanted > 0)
            expected = torch.cat([one.hidden for one in singly], dim=1)
            if not _close(expected, found.hidden.transpose(0, 1)):
                return False
    except Exception:  # a family's own code was given what it does not know: whatever it raises
        return False
    return True


def _turns_by_length(stage: Stage) -> bool:
    """Whether the longest session of a step decides on the frequencies of all its rows."""
    kinds = str([getattr(module, "rope_type", "") for module in stage.model.modules()])
    return "longrope" in kinds or "dynamic" in kinds


def random_rows(stage: Stage, count: int, draw: torch.Generator) -> Tensor:
    """Return inputs [1, count] or [1, count, hidden] for a stage, to measure and to try it."""
    if stage.start == 0:
        return torch.randint(stage.vocab_size, (1, count), generator=draw)
    return torch.randn(1, count, stage.hidden_size, generator=draw)


def _close(a: Tensor, b: Tensor) -> bool:
    difference, scale = (a - b).abs().max(), a.abs().max()
    rounding = TOLERANCE if a.dtype == torch.float32 else 16 * torch.finfo(a.dtype).eps
    return bool(difference <= rounding * scale)  # False for NaN


class _Together(DynamicLayer):
    """One layer's entries: of each row that of its session."""

    def __init__(self, entries: Sequence[Any]) -> None:
        super().__init__()
        self._entries = entries

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Append each row to its entry; return lists of keys and values, what each row sees."""
        keys, values = list[Tensor](), list[Tensor]()
        for index, entry in enumerate(self._entries):
            row = slice(index, index + 1)
            key, value = entry.update(key_states[row], value_states[row])
            keys.append(key)
            values.append(value)
        return keys, values


class _Attending:
    """For the length of the block, the model's attention understands the lists."""

    def __init__(self, stage: Stage) -> None:
        self._before = [(config, config._attn_implementation) for config in stage.configs]

    def __enter__(self) -> None:
        for config, name in self._before:
            config._sharding_alone, config._attn_implementation_internal = name, _NAME

    def __exit__(self, *_: object) -> None:
        for config, name in self._before:
            config._attn_implementation_internal = name


def _attend(
    module: Any,
    query: Tensor,
    key: list[Tensor],
    value: list[Tensor],
    attention_mask: None,
    *,
    scaling: float | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Let each row look at all keys of its session. query: [sessions, heads, 1, width]."""
    rows = zip(query.split(1), key, value, strict=True)
    own = getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)
    if module.config._sharding_alone == "eager" and own is not None:
        singly = [own(module, *row, None, scaling=scaling, **options)[0] for row in rows]
        return torch.cat(singly), None
    grouped = key[0].shape[1] != query.shape[1]
    found = [
        scaled_dot_product_attention(row, keys, values, scale=scaling, enable_gqa=grouped)
        for row, keys, values in rows
    ]
    return torch.cat(found).transpose(1, 2), None


def _no_mask(**_: Any) -> None:
    """One row may look at everything that its cache shows."""


AttentionInterface.register(_NAME, _attend)
AttentionMaskInterface.register(_NAME, _no_mask)
