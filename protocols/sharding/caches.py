# mypy: disable-error-code="no-untyped-call"
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false
# (transformers is annotated in part)
"""The KV cache of one session on one stage: grows without copies, goes back to any position.

transformers' own caches copy everything at each step, and its sliding windows forget. These keep
all rows in buffers that are longer than needed and hand out views: the attention sees the same
numbers. Layers that the session does not use only know how long they would be. Needs torch.
"""

import copy
from typing import Any

from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from wire.errors import NotFound

GROWTH_ROWS = 64  # a buffer is a multiple of so many rows,
GROWTH = 1.25  # and when it is full so much longer than needed: each row is copied some 4 times
_FORGOTTEN = "a recurrent state does not go back to an earlier position"


class StageCache:
    """What a session has of layers [start, end): keys and values of `position` rows."""

    def __init__(self, config: Any, start: int, end: int) -> None:
        self.start, self.end = start, end
        self.position = 0
        self._config = config
        self.layers = _empty(config, start, end)

    @property
    def owned(self) -> list[Any]:
        """The entries of layers [start, end)."""
        return self.layers.layers[self.start : self.end]

    @property
    def truncates(self) -> bool:
        """Whether rows can be taken back: recurrent states (Mamba, linear attention) do not."""
        return all(isinstance(entry, _Growing | _GrowingWindow) for entry in self.owned)

    @property
    def size_bytes(self) -> int:
        """Memory in use, whatever the buffers have spare."""
        return sum(tensor.nbytes for entry in self.owned for tensor in _tensors(entry))

    def mark_absent(self) -> None:
        """Let the entries of unused layers report the length that they would have.

        Masks are built from the first layer of each attention type, which may be one of them.
        """
        entries: list[Any] = self.layers.layers
        for entry in (*entries[: self.start], *entries[self.end :]):
            if hasattr(entry, "has_previous_state"):  # linear attention
                entry.has_previous_state[0] = self.position > 0
            if hasattr(entry, "cumulative_length"):  # a sliding window
                entry.cumulative_length = self.position
            elif isinstance(entry, _Absent):
                entry.length = self.position

    def truncate(self, position: int) -> None:
        """Forget the rows from `position` on, also those that only some layers have seen, in a step
        that failed. Raises NotFound if the family cannot.
        """
        assert 0 <= position <= self.position
        if position == 0:
            self.layers = _empty(self._config, self.start, self.end)
        elif self.truncates:
            for entry in self.owned:
                entry.cut(position)
        elif position < self.position:
            raise NotFound(_FORGOTTEN)
        self.position = position

    def fork(self, position: int) -> "StageCache":
        """Return a copy of the first `position` rows. Raises NotFound as `truncate` does."""
        other = StageCache(self._config, self.start, self.end)
        if position and position != self.position and not self.truncates:
            raise NotFound(_FORGOTTEN)
        if position:
            entries: list[Any] = other.layers.layers
            for index in range(self.start, self.end):
                entry: Any = self.layers.layers[index]
                entries[index] = (
                    entry.fork(position)
                    if isinstance(entry, _Growing | _GrowingWindow)
                    else copy.deepcopy(entry)
                )
            other.position = position
        return other


def _empty(config: Any, start: int, end: int) -> DynamicCache:
    cache = DynamicCache(config=config)
    entries: list[Any] = cache.layers
    for index, entry in enumerate(entries):
        owned = start <= index < end
        if type(entry) is DynamicLayer:
            entries[index] = _Growing() if owned else _Absent()
        elif type(entry) is DynamicSlidingWindowLayer and owned:
            entries[index] = _GrowingWindow(entry.sliding_window)
    return cache


class _Growing(DynamicLayer):
    """Full attention: keys and values [1, heads, rows, width] are views of longer buffers."""

    keys: Any
    values: Any

    def __init__(self) -> None:
        super().__init__()
        self._buffers: tuple[Tensor, Tensor] | None = None

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Append rows; return all."""
        self._append(self.get_seq_length(), key_states, value_states)
        return self.keys, self.values

    def _append(self, held: int, keys: Tensor, values: Tensor) -> None:
        if not self.is_initialized:
            self.lazy_initialization(keys, values)
        end = held + keys.shape[-2]
        buffers = self._buffers
        if buffers is None or buffers[0].shape[-2] < end:
            buffers = _longer(keys, self.keys, held, end), _longer(values, self.values, held, end)
            self._buffers = buffers
        buffers[0][:, :, held:end] = keys
        buffers[1][:, :, held:end] = values
        self.keys, self.values = buffers[0][:, :, :end], buffers[1][:, :, :end]

    def cut(self, length: int) -> None:
        """Keep the first rows."""
        if self.is_initialized:
            self.keys, self.values = self.keys[:, :, :length], self.values[:, :, :length]

    def fork(self, length: int) -> "_Growing":
        """Copy the first rows."""
        other = _Growing()
        if self.is_initialized:
            other._append(0, self.keys[:, :, :length], self.values[:, :, :length])
        return other


class _GrowingWindow(DynamicSlidingWindowLayer):
    """A sliding window that keeps the rows which left it, so that it can go back."""

    keys: Any
    values: Any

    def __init__(self, sliding_window: int) -> None:
        super().__init__(sliding_window)
        self._rows = _Growing()

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Append rows; return those that the new ones may look at."""
        visible = min(self.cumulative_length, self.sliding_window - 1) + key_states.shape[-2]
        self.keys, self.values = self._rows.update(key_states, value_states)
        self.cumulative_length += key_states.shape[-2]
        self.is_initialized = True
        return self.keys[:, :, -visible:], self.values[:, :, -visible:]

    def cut(self, length: int) -> None:
        """Keep the first rows."""
        self._rows.cut(length)
        self._show(length)

    def _show(self, length: int) -> None:
        self.keys, self.values = self._rows.keys, self._rows.values
        self.is_initialized = self._rows.is_initialized
        self.cumulative_length = length if self.is_initialized else 0

    def fork(self, length: int) -> "_GrowingWindow":
        """Copy the first rows."""
        other = _GrowingWindow(self.sliding_window)
        other._rows = self._rows.fork(length)
        other._show(length)
        return other


class _Absent(DynamicLayer):
    """Stands for full attention in a layer that this session does not use."""

    length = 0

    def get_seq_length(self) -> int:
        return self.length


def _longer(like: Tensor, old: Any, held: int, end: int) -> Tensor:
    """Return a buffer for `end` rows and more, with the old ones in it."""
    rows = -(-int(end * GROWTH) // GROWTH_ROWS) * GROWTH_ROWS
    buffer = like.new_empty((*like.shape[:-2], rows, like.shape[-1]))
    if held:
        buffer[:, :, :held] = old
    return buffer


def _tensors(entry: Any) -> list[Tensor]:
    states = (getattr(entry, "conv_states", {}), getattr(entry, "recurrent_states", {}))
    found = [tensor for group in states for tensor in group.values()]
    found += [getattr(entry, "keys", None), getattr(entry, "values", None)]
    return [tensor for tensor in found if tensor is not None]
