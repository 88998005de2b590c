"""The record of a published figure and ours."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Quantity = Literal["memory", "states", "profiled bubble", "bubble", "speed", "step"]
# The unit of each quantity. GB are 10⁹ bytes.
UNITS: dict[Quantity, str] = {
    "memory": "GiB", "states": "GB", "profiled bubble": "%", "bubble": "%", "speed": "TFLOP/s", "step": "s",
}  # fmt: skip


@dataclass(frozen=True)
class Reference:
    """One published figure, and ours for the same, both in `UNITS[quantity]`.

    `model`: the name in the catalog if it has this shape, otherwise the size in the paper. `device`: empty if it does not matter.
    `exact`: the figure is from a formula, so `ours` must be equal. Otherwise it was measured, and `ours` is a prediction.
    """

    source: str
    model: str
    layout: str
    quantity: Quantity
    published: float
    ours: float
    device: str = ""
    exact: bool = False

    @property
    def error(self) -> float:
        """The signed error of ours, relative to the published figure."""
        return self.ours / self.published - 1
