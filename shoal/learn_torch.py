"""Optimizers that go with a strategy, in torch."""

# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false
# torch's annotations of optimizer states are incomplete.

import math
from collections.abc import Callable, Iterable
from typing import Any, cast

import torch


class AccumAdamW(torch.optim.Optimizer):
    """AdamW whose moments are updated with the mean of `accumulate` gradients.

    Every step moves with the moments as they would be with its own gradient g:
    m̃ = β₁ m + (1 - β₁) g,  ṽ = β₂ v + (1 - β₂) g²,  x ← (1 - α λ) x - α m̂ / (√v̂ + ε),
    where hats correct the bias for ⌈step / accumulate⌉ updates; m and v themselves change every
    `accumulate` steps, with the mean gradient of these. So n members, with 1/n of a batch each,
    keep moments like those of the whole batch's. 4, more with more members; 1 is AdamW.
    Source: Wang et al., "From promise to practice", 2025 (AccumAdam).
    """

    def __init__(
        self,
        params: Iterable[torch.nn.Parameter],
        lr: float = 1e-3,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
        accumulate: int = 4,
    ) -> None:
        if accumulate < 1:
            raise ValueError(f"accumulate is at least 1, not {accumulate}")
        defaults = {
            "lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay,
            "accumulate": accumulate,
        }  # fmt: skip
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Make one step; `closure` computes the loss anew, as in torch."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, parameter.grad, group)
        return loss

    def _update(
        self, parameter: torch.Tensor, gradient: torch.Tensor, group: dict[str, Any]
    ) -> None:
        own = cast("dict[str, Any]", self.state[parameter])
        if not own:
            own["step"] = 0
            for name in ("first", "second", "gathered"):
                own[name] = torch.zeros_like(parameter)
        own["step"] += 1
        (beta1, beta2), many = group["betas"], group["accumulate"]
        updates = math.ceil(own["step"] / many)
        own["gathered"].add_(gradient, alpha=1 / many)
        first = torch.lerp(own["first"], gradient, 1 - beta1)
        second = (own["second"] * beta2).addcmul_(gradient, gradient, value=1 - beta2)
        below = (second / (1 - beta2**updates)).sqrt_().add_(group["eps"])
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        parameter.addcdiv_(first, below, value=-group["lr"] / (1 - beta1**updates))
        if own["step"] % many == 0:
            mean = own["gathered"]
            own["first"].lerp_(mean, 1 - beta1)
            own["second"].mul_(beta2).addcmul_(mean, mean, value=1 - beta2)
            mean.zero_()
