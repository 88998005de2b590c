"""Lion (Chen et al. 2023, "Symbolic Discovery of Optimization Algorithms", algorithm 2)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor


class Lion(torch.optim.Optimizer):
    """Updates values by the sign of an average of gradients, with decoupled weight decay λ.

        c = β1·m + (1 − β1)·g
        m = β2·m + (1 − β2)·g
        p = p − lr·(sign(c) + λ·p)

    A step allocates nothing: c overwrites g. Since c − m = (1 − β1)·(g − m), the new m is m + (1 − β2)/(1 − β1)·(c − m). `mul_`
    by a number would allocate 8 bytes for the number; `add_` and `lerp_` do not.
    """

    def __init__(self, tensors: Iterable[Tensor], lr: float, betas: tuple[float, float], weight_decay: float) -> None:
        """0 ≤ β1 < 1."""
        super().__init__(tensors, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]  # torch's may return a closure's loss
        """Update all values. Overwrites each `grad`. `closure` is ignored."""
        for group in self.param_groups:
            lr, (beta1, beta2) = group["lr"], group["betas"]
            for p in group["params"]:
                state = self.state[p]
                if not state:
                    state["exp_avg"] = torch.zeros_like(p)
                m = state["exp_avg"]
                c = p.grad.lerp_(m, beta1)
                m.lerp_(c, (1 - beta2) / (1 - beta1))
                p.add_(p, alpha=-lr * group["weight_decay"]).add_(c.sign_(), alpha=-lr)
