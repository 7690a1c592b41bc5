"""Matrix products of few rows: drafts, and answers that are computed together. Needs torch.

For 2 to 5 rows torch's linear is slow on some processors: two rows take twice the time of one,
though both read the same weights once. The same product with the weights on its left is faster
there, up to a number of rows that differs by shape; so it is measured. It rounds otherwise in the
last digits, as any other number of rows does: prompts and single rows never come here, so that they
stay those of the whole model, bit for bit.
"""

import functools
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

ROWS = (2, 3, 4, 6, 8, 12, 16)  # that are tried; beyond them the usual product is the faster one
TRIES = 2  # of each; the faster counts: what others do on the machine only makes it slower
GAIN = 0.95  # of the usual time, that the other way must take at most: it is copied once more


class FewRows:
    """Knows for each shape of weights up to how many rows the other way is faster."""

    def __init__(self) -> None:
        self.allowed = False  # whether rows may be rounded otherwise in the forward in progress

    def install(self, modules: Sequence[nn.Module]) -> None:
        """Measure all linear layers in these modules, and let them choose from now on."""
        shapes: dict[tuple[int, ...], list[nn.Linear]] = {}
        for root in modules:
            for module in root.modules():
                if type(module) is nn.Linear and module.weight.device.type == "cpu":
                    shapes.setdefault(tuple(module.weight.shape), []).append(module)
        for found in shapes.values():
            most = _most_rows([module.weight for module in found])
            for module in found if most > 1 else ():
                module.forward = functools.partial(self._forward, module, most)

    def _forward(self, module: nn.Linear, most: int, inputs: Tensor) -> Tensor:
        rows = inputs.numel() // module.in_features
        if self.allowed and 1 < rows <= most:
            return _weights_left(inputs, module.weight, module.bias)
        return linear(inputs, module.weight, module.bias)


def _weights_left(inputs: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return what `linear` does, as the transpose of weight @ inputs^T."""
    product = torch.mm(weight, inputs.reshape(-1, weight.shape[1]).T).T
    product = product.contiguous() if bias is None else product + bias
    return product.view(*inputs.shape[:-1], weight.shape[0])


@torch.inference_mode()
def _most_rows(weights: list[Tensor]) -> int:
    """Return up to how many rows the other way is faster; 1: never."""
    index = 0

    def seconds(product: Callable[[Tensor, Tensor], Tensor], inputs: Tensor) -> float:
        nonlocal index
        index += 1  # each time other weights: in a forward they are in no cache either
        began = time.perf_counter()
        product(inputs, weights[index % len(weights)])
        return time.perf_counter() - began

    most = 1
    for rows in ROWS:
        inputs = torch.ones(rows, weights[0].shape[1], dtype=weights[0].dtype)
        times = [(seconds(_weights_left, inputs), seconds(linear, inputs)) for _ in range(TRIES)]
        if min(ours for ours, _ in times) > GAIN * min(usual for _, usual in times):
            break
        most = rows
    return most
