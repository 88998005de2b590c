"""What training on a number of tokens takes: time, device-hours, and money and energy at given rates."""

from __future__ import annotations

from dataclasses import dataclass

from engine.spec import RequestError, sentence


@dataclass(frozen=True)
class Bill:
    """Training on `tokens` with `devices` devices at `tokens_per_second`. Raises `RequestError` if a number is not positive.

    `price`: of a device for an hour. `watts`: of a device, with its share of the machine. None leaves that out.
    """

    tokens: float
    devices: int
    tokens_per_second: float
    price: float | None = None
    watts: float | None = None

    def __post_init__(self) -> None:
        for name in ("tokens", "price", "watts"):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise RequestError(sentence("{name}={value} must be positive and finite", name=name, value=f"{value:g}"))

    @property
    def days(self) -> float:
        return self.tokens / self.tokens_per_second / 86_400

    @property
    def device_hours(self) -> float:
        return 24 * self.days * self.devices

    @property
    def money(self) -> float | None:
        """In the unit of the price."""
        return None if self.price is None else self.device_hours * self.price

    @property
    def megawatt_hours(self) -> float | None:
        return None if self.watts is None else self.device_hours * self.watts / 1e6

    def text(self) -> str:
        parts = [f"{self.days:,.1f} days", f"{self.device_hours:,.0f} device-hours"]
        if self.money is not None:
            parts.append(f"{self.money:,.0f} at {self.price:g} an hour")
        if self.megawatt_hours is not None:
            parts.append(f"{self.megawatt_hours:,.1f} MWh at {self.watts:g} W a device")
        return f"{self.tokens:,.4g} tokens with the first take {', '.join(parts)}"

    def as_json(self) -> dict[str, float | None]:
        names = ("tokens", "days", "device_hours", "money", "megawatt_hours")
        return {name: getattr(self, name) for name in names}
