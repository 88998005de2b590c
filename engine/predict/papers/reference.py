"""One published figure and ours for the same."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Quantity = Literal["memory", "states", "profiled bubble", "bubble", "speed", "step"]
# What each is in, as tables write it. A paper's GB are 10⁹ bytes.
UNITS: dict[Quantity, str] = {
    "memory": "GiB", "states": "GB", "profiled bubble": "%", "bubble": "%", "speed": "TFLOP/s", "step": "s",
}  # fmt: skip


@dataclass(frozen=True)
class Reference:
    """One published figure and ours for the same, both in `UNITS[quantity]`.

    `model` is the catalog's name where the shape has one, and the paper's size otherwise; `device` is empty where none matters.
    `exact`: a formula of the paper's, which must come out the same; otherwise `ours` is a prediction of what was measured.
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
        """Signed, relative to what was published."""
        return self.ours / self.published - 1
