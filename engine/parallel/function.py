"""torch's functions with a derivative of their own, with less Python around each call."""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd.function import FunctionMeta

# Private parts of torch. A torch without one of them has the plain functions, which do the same with more Python.
_APPLY: Any = vars(getattr(torch._C, "_FunctionBase", object)).get("apply")
_DIRECT = _APPLY is not None and hasattr(torch.autograd.Function, "_backward_cls")


class _Direct(FunctionMeta):
    """Backward calls `backward` itself, and not by way of a method that looks for another derivative (`vjp`) first."""

    def __init__(self, name: str, bases: tuple[type, ...], attributes: dict[str, Any]) -> None:
        super().__init__(name, bases, attributes)
        if _DIRECT:
            self._backward_cls.apply = self.backward  # type: ignore[attr-defined]


class Function(torch.autograd.Function, metaclass=_Direct):
    """`torch.autograd.Function` without what transforms of `torch.func` need, which no rank uses.

    torch's `apply` looks for such transforms before it calls the one that it has in C++. That takes as long as the call. Layers
    of a small model have 70 calls in a step, and as many in backward.
    """

    if _DIRECT:
        apply = _APPLY  # a class method, so that it is called with the subclass
