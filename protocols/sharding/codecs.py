"""Activations as bytes, between stages. Needs torch: for the worker process only.

`float32` is exact; `bfloat16`, and `float16`, which saturates, halve the bytes. `int8` follows
LLM.int8 (Dettmers et al., NeurIPS 2022) by row: the 4 largest magnitudes apart in 16 bits, the rest
as absmax-scaled int8 in blocks of 64. A row in int8 is

    scales of the blocks (bfloat16) | indices of the outliers (uint16, rising) | their values
    (float16, each as a multiple of the largest value that its block can hold) | int8 elements

The values are relative, because a first token's may pass float16's range (SmolLM2's is 23,294)
and bfloat16 has few digits: of 1,798 tokens of prose over 4 cuts, 99.4 % are picked as without a
codec, 99.1 % with bfloat16 outliers (SmolLM2; docs/protocols/sharding.md).
"""

import torch
from torch import Tensor

from protocols.sharding.rows import BLOCK_SIZE, OUTLIERS, row_bytes
from wire.errors import BadMessage

# The greatest finite float16; of the others a little less than what rounds to infinity.
_LIMITS = {"float16": 65504.0, "bfloat16": 3.3e38, "int8": 3.3e38}
_MULTIPLES = 65000.0  # of the rest of its block, that an outlier may be: float16 holds that
_LEVELS = 127.0  # of int8, on either side of zero
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def encode(codec: str, hidden: Tensor) -> bytes:
    """Return the rows of hidden states [n, hidden_size] of any float type, on any device.

    Raises BadMessage if some are not finite: the model overflows, or was fed nonsense.
    """
    hidden = hidden.detach().to("cpu", torch.float32)
    if not _is_finite(hidden):
        raise BadMessage("hidden states are not finite")
    if codec in _LIMITS:
        hidden = hidden.clamp(-_LIMITS[codec], _LIMITS[codec])
    if codec == "int8":
        return _bytes(_encode_int8(hidden))
    dtype = _DTYPES.get(codec)
    if dtype is None:
        raise BadMessage(f"there are no rows in the codec {codec[:32]!r}")
    return _bytes(hidden.to(dtype))


def decode(codec: str, rows: bytes, hidden_size: int) -> Tensor:
    """Return the float32 hidden states [n, hidden_size] of rows, in memory of their own.

    Raises BadMessage for everything that is no row of finite numbers; nothing else.
    """
    size = row_bytes(codec, hidden_size)
    if codec == "ids" or not rows or len(rows) % size:
        raise BadMessage(f"{len(rows)} B are not rows of {size} B in {codec[:32]}")
    # Copied: what torch reads must be writable, and aligned as in the one-process model.
    data = torch.frombuffer(bytearray(rows), dtype=torch.uint8).view(-1, size)
    if codec == "int8":
        hidden = _decode_int8(data, hidden_size)
    else:
        hidden = data.view(_DTYPES[codec]).to(torch.float32, copy=True)
    if not _is_finite(hidden):
        raise BadMessage("the rows hold numbers that are not finite")
    return hidden


def _bytes(tensor: Tensor) -> bytes:
    return tensor.contiguous().view(torch.uint8).numpy().tobytes()


def _is_finite(hidden: Tensor) -> bool:
    """Whether all are (in two passes; isfinite().all() takes four)."""
    low, high = hidden.aminmax()
    return bool(torch.isfinite(low) & torch.isfinite(high))


def _encode_int8(hidden: Tensor) -> Tensor:
    """Return uint8 [n, row_bytes]."""
    count, size = hidden.shape
    blocks = -(-size // BLOCK_SIZE)
    indices = hidden.abs().topk(min(OUTLIERS, size), dim=1, sorted=False).indices.sort(dim=1).values
    values = hidden.gather(1, indices)
    rest = hidden.scatter(1, indices, 0.0)
    rest = torch.nn.functional.pad(rest, (0, blocks * BLOCK_SIZE - size))
    rest = rest.view(count, blocks, BLOCK_SIZE)
    # A scale is large enough for the outliers of its block, too, as multiples of what it spans.
    owners = indices // BLOCK_SIZE
    largest = rest.abs().amax(dim=2)
    largest = largest.scatter_reduce(1, owners, values.abs() / _MULTIPLES, "amax")
    scales = _rounded_up(largest / _LEVELS)
    quanta = (rest / scales.float().clamp_min(1e-38).unsqueeze(2)).round_()
    quanta = quanta.clamp_(-_LEVELS, _LEVELS).to(torch.int8).view(count, -1)[:, :size]
    unit = scales.float().gather(1, owners).mul_(_LEVELS).clamp_min(1e-38)
    ratios = (values / unit).to(torch.float16)
    parts = (scales, indices.to(torch.int16), ratios, quanta)
    return torch.cat([part.contiguous().view(torch.uint8) for part in parts], dim=1)


def _rounded_up(scales: Tensor) -> Tensor:
    """Return positive numbers as bfloat16, none smaller than it was: so no element is cut off."""
    bits = scales.contiguous().view(torch.int32)
    return ((bits + 0xFFFF) >> 16).to(torch.int16).view(torch.bfloat16)


def _decode_int8(data: Tensor, size: int) -> Tensor:
    """Return float32 [n, size] of uint8 [n, row_bytes]; what it holds is checked by the caller."""
    count, blocks, outliers = data.shape[0], -(-size // BLOCK_SIZE), min(OUTLIERS, size)
    widths = [2 * blocks, 2 * outliers, 2 * outliers, size]
    # (flat, because a part of a single row keeps a stride that may be odd)
    first, second, third, fourth = (part.reshape(-1) for part in torch.split(data, widths, dim=1))
    scales = first.view(torch.bfloat16).view(count, -1).float()
    indices = second.view(torch.int16).view(count, -1).long() & 0xFFFF
    ratios = third.view(torch.float16).view(count, -1).float()
    if bool((indices[:, -1] >= size).any()) or bool((indices.diff(dim=1) <= 0).any()):
        raise BadMessage("indices of outliers are not rising, or beyond the row")
    quanta = torch.nn.functional.pad(
        fourth.view(torch.int8).view(count, size).float(), (0, blocks * BLOCK_SIZE - size)
    ).view(count, blocks, BLOCK_SIZE)
    hidden = (quanta * scales.unsqueeze(2)).view(count, -1)[:, :size].contiguous()
    units = scales.gather(1, indices // BLOCK_SIZE) * _LEVELS
    return hidden.scatter_(1, indices, ratios * units)
