"""What is planned, as the link carries it: model, device, how many, batch, and what is assumed of the hardware."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from engine import catalog
from engine.devices import DEVICES, DeviceSpec
from engine.predict.accounting import ACCOUNTINGS, AccountingName
from engine.predict.rates import Assumptions
from engine.predict.search import MIXED, Plan, search
from engine.spec import ModelSpec, RequestError, WorkloadSpec, sentence

OWN = "own"  # the device whose figures the form gives
# Figures of a device of the user's: the link's letter, the field, and the unit in which people give it.
OWN_FIELDS: Mapping[str, tuple[str, float]] = {
    "m": ("memory_bytes", 1e9),
    "t": ("bf16_flops", 1e12),
    "f": ("fp32_flops", 1e12),
    "b": ("memory_bandwidth", 1e9),
    "i": ("intra_bandwidth", 1e9),
    "o": ("inter_bandwidth", 1e9),
    "n": ("node_size", 1),
}
_NUMBERS = ("ranks", "batch", "seq")


@dataclass(frozen=True)
class Request:
    model: str = "gpt3-175b"
    device: str = "h100-80gb"
    ranks: int = 1024
    batch: int = 1536
    seq: int = 0  # 0: the model's own
    precision: str = "bf16"
    accounting: AccountingName = "engine"
    own: tuple[float, ...] = ()  # in the order of `OWN_FIELDS`, in their units
    assumed: Assumptions = field(default_factory=Assumptions)

    @property
    def spec(self) -> ModelSpec:
        """Raises `RequestError`."""
        model = catalog.model(self.model)
        return ModelSpec.model_validate(model.model_dump() | {"seq": self.seq}) if self.seq else model

    @property
    def hardware(self) -> DeviceSpec:
        """Raises `RequestError`."""
        if self.device != OWN:
            return DEVICES[self.device]
        figures = dict(zip((name for name, _ in OWN_FIELDS.values()), self.figures(), strict=True))
        figures["node_size"], figures["memory_bytes"] = int(figures["node_size"]), int(figures["memory_bytes"])
        return DeviceSpec(name=OWN, **figures)

    def figures(self) -> list[float]:
        """Of a device of one's own, in base units."""
        return [value * unit for value, (_, unit) in zip(self.own, OWN_FIELDS.values(), strict=True)]

    @property
    def workload(self) -> WorkloadSpec:
        return WorkloadSpec.model_validate(MIXED.model_dump() | {"precision": self.precision, "accumulate": "fp32"})

    def plan(self) -> Plan:
        """Search. Raises `RequestError` where no layout fits the numbers together."""
        return search(self.spec, self.ranks, self.hardware, self.batch, self.workload, self.assumed, self.accounting)


DEFAULT = Request()


def starting_from(device: str) -> tuple[float, ...]:
    """The figures of a known device, to change into one's own."""
    known = DEVICES[device]
    return tuple(float(getattr(known, name)) / unit for name, unit in OWN_FIELDS.values())


def to_link(request: Request) -> dict[str, str]:
    """The parameters that differ from the defaults; model, device and count are always there."""
    link = {"model": request.model, "device": request.device, "ranks": str(request.ranks)}
    link |= {name: str(getattr(request, name)) for name in ("batch", "seq", "precision", "accounting") if _differs(request, name)}
    if request.device == OWN:
        link["own"] = "_".join(f"{value:g}" for value in request.own)
    for name, value in request.assumed:
        if value != getattr(DEFAULT.assumed, name):
            link[name] = f"{value:g}" if isinstance(value, float) else str(int(value))
    return link


def _differs(request: Request, name: str) -> bool:
    return getattr(request, name) != getattr(DEFAULT, name)


def of_link(link: Mapping[str, str]) -> Request:
    """What a link asks for. Raises `RequestError` with what cannot be read in it."""
    given: dict[str, Any] = {known.name: link[known.name] for known in fields(Request) if known.name in link}
    given.pop("assumed", None)
    for name in _NUMBERS:
        if name in given:
            given[name] = _whole(name, given[name])
    if "own" in given:
        given["own"] = _figures(given["own"])
    allowed = {
        "model": tuple(catalog.MODELS),
        "device": (*DEVICES, OWN),
        "precision": ("bf16", "fp32"),
        "accounting": ACCOUNTINGS,
    }
    for name, known in allowed.items():
        if name in given and given[name] not in known:
            raise RequestError(
                sentence(
                    "the link's {name} {text!r} is none of {names}", name=name, text=given[name][:40], names=", ".join(known)
                )
            )
    if given.get("device") == OWN and not given.get("own"):
        raise RequestError(sentence("the link names a device of its own without its figures"))
    assumed = {name: link[name] for name in Assumptions.model_fields if name in link}
    return replace(Request(**given), assumed=Assumptions.model_validate(assumed))


def _whole(name: str, text: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 9:
        raise RequestError(sentence("the link's {name} {text!r} is no whole number", name=name, text=text[:20]))
    return int(text)


def _figures(text: str) -> tuple[float, ...]:
    try:
        figures = tuple(float(part) for part in text.split("_"))
    except ValueError:
        figures = ()
    if len(figures) != len(OWN_FIELDS):
        raise RequestError(sentence("the link's device {text!r} has not {count} figures", text=text[:60], count=len(OWN_FIELDS)))
    return figures
