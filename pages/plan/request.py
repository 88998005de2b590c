"""The request of a plan, as its link has it: model, device, their number, batch, and assumptions about the hardware."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, get_args

from engine import catalog
from engine.devices import DeviceSpec, device, device_names
from engine.launch.recording.client import with_ledgers
from engine.optimizer import Framework
from engine.papers.accounting import ACCOUNTINGS, AccountingName
from engine.planner.bill import Bill
from engine.planner.candidates import MOST, default_batch
from engine.planner.frameworks import NAMES
from engine.planner.search import MIXED, Plan, search
from engine.predict.speed.rates import Assumptions
from engine.spec import AttentionName, ModelSpec, RequestError, WorkloadSpec, sentence
from pages.shared.link_numbers import shortest_text
from pages.shared.links import LinkError, model_of_link, model_to_link

FOR, SERVING = "for", "serving"  # the link's parameter, and its value for serving; without it, the model is trained
AUTOMATIC = -1.0  # a reserve for each layout, as `engine.planner.reserve` says
MOST_RESERVE, MOST_TOKENS, MOST_RATE = 1e6, 1e18, 1e9  # GiB; tokens; price and watts
OWN = "own"  # the name in links of a device with the user's own figures
# Figures of the user's own device, in the link's order, each with its unit in forms and links.
OWN_FIELDS: Mapping[str, float] = {
    "memory_bytes": 1e9,
    "bf16_flops": 1e12,
    "fp32_flops": 1e12,
    "memory_bandwidth": 1e9,
    "intra_bandwidth": 1e9,
    "inter_bandwidth": 1e9,
    "intra_latency": 1e-6,
    "inter_latency": 1e-6,
    "node_size": 1,
    "reachable": 1,
    "fp32_reachable": 1,
    "context_bytes": 2**20,
    "pair_communicator_bytes": 2**20,
    "communicator_bytes": 2**20,
    "workspace_bytes": 2**20,
    "fragmentation": 1,
    "matmul_efficiency": 1,
    "attention_efficiency": 1,
    "memory_efficiency": 1,
    "intra_efficiency": 1,
    "launch_us": 1,
    "launches_ahead": 1,
}
# What a calibration has measured, which the form does not show.
CALIBRATED = ("matmul_efficiency", "attention_efficiency", "memory_efficiency", "intra_efficiency", "launch_us", "launches_ahead")
_UNMEASURED = -1.0  # in links
_OF_OLDER_LINKS = 10  # figures that links always had
OF_RESERVE = ("context_bytes", "pair_communicator_bytes", "communicator_bytes", "workspace_bytes", "fragmentation")
_WHOLE = ("memory_bytes", "node_size", *OF_RESERVE[:-1])
_OR_NONE = ("seq", "length", "sequences")  # numbers that can be 0
_NUMBERS = ("ranks", "batch", "seq")
# Numbers that may be left out, the largest of each.
OPTIONAL = {"reserve": MOST_RESERVE, "tokens": MOST_TOKENS, "price": MOST_RATE, "watts": MOST_RATE}


@dataclass(frozen=True)
class Request:
    model: str = "gpt3-175b"  # a name in the catalog, or the sizes and parts as in links
    device: str = "h100-80gb"
    ranks: int = 1024
    batch: int = default_batch(1024)
    seq: int = 0  # 0: the model's
    precision: str = "bf16"
    attention: AttentionName = "fused"
    accounting: AccountingName = "engine"
    own: tuple[float, ...] = ()  # in the order of `OWN_FIELDS`, in their units
    called: str = ""  # name of the user's own device
    reserve: float = AUTOMATIC  # GiB of a device that tensors leave free
    only: Framework | Literal[""] = ""  # layouts that this framework runs as they are; empty: all
    tokens: float = 0.0  # what training takes is said for so many; 0: it is not
    price: float = 0.0  # of a device for an hour; 0: unknown
    watts: float = 0.0  # of a device with its share of a node; 0: unknown
    assumed: Assumptions = field(default_factory=Assumptions)

    @property
    def is_named(self) -> bool:
        """Whether the model is in the catalog."""
        return self.model in catalog.MODELS

    @property
    def spec(self) -> ModelSpec:
        """Raises `RequestError`."""
        model = model_of_link(self.model)
        return ModelSpec.model_validate(model.model_dump() | {"seq": self.seq}) if self.seq else model

    @property
    def hardware(self) -> DeviceSpec:
        """Raises `RequestError`."""
        return made(self.called, self.own) if self.device == OWN else device(self.device)

    @property
    def workload(self) -> WorkloadSpec:
        chosen = {"precision": self.precision, "accumulate": "fp32", "attention": self.attention}
        return WorkloadSpec.model_validate(MIXED.model_dump() | chosen)

    @property
    def kept_free(self) -> int | None:
        """The reserve in bytes; None: one for each layout."""
        return None if self.reserve == AUTOMATIC else round(self.reserve * 2**30)

    def plan(self, simulate_best: int = 20) -> Plan:
        """Search. Raises `RequestError` if no layout fits the numbers."""
        asked = self.spec, self.ranks, self.hardware, self.batch, self.workload, self.assumed, self.accounting, simulate_best
        return with_ledgers(lambda: search(*asked, only=self.only or None, kept_free=self.kept_free))

    def bill(self, tokens_per_second: float) -> Bill | None:
        """What training takes at that speed; None if it is not asked. Raises `RequestError`."""
        if not self.tokens:
            return None
        return Bill(self.tokens, self.ranks, tokens_per_second, self.price or None, self.watts or None)


@dataclass(frozen=True)
class Serving:
    """The additional settings of a request for serving."""

    length: int = 0  # tokens of a sequence, prompt and answer; 0: the model's sequence length
    sequences: int = 0  # concurrent sequences of all replicas; 0: as many as fit


DEFAULT = Request()
_SEQUENCES_EACH = (0.5, 16)  # the range of a usual batch, for each device


def usual_batch(batch: int, ranks: int) -> int:
    """`batch` on that many devices. If that is unusually many or few sequences for each, the default."""
    least, most = _SEQUENCES_EACH
    return batch if least <= batch / ranks <= most else default_batch(ranks)


def made(called: str, own: tuple[float, ...]) -> DeviceSpec:
    """The user's own device. Raises `RequestError`, which names the invalid figure."""
    figures: dict[str, Any] = {name: value * unit for value, (name, unit) in zip(own, OWN_FIELDS.items(), strict=True)}
    figures |= {name: round(figures[name]) for name in _WHOLE if math.isfinite(figures[name])}
    figures |= {name: None for name in CALIBRATED if figures[name] == _UNMEASURED} | {
        "launches_ahead": figures["launches_ahead"] != 0
    }
    return DeviceSpec(name=called or OWN, **figures)


def figures_of(device: DeviceSpec) -> tuple[float, ...]:
    """A device's figures in the units of links and forms."""
    return tuple(_figure(getattr(device, name), unit) for name, unit in OWN_FIELDS.items())


def _figure(value: float | None, unit: float) -> float:
    return _UNMEASURED if value is None else float(f"{value / unit:.15g}")


def to_link(request: Request) -> dict[str, str]:
    """The link's parameters: model, device, count and batch, and others that differ from their defaults."""
    link = {"model": request.model, "device": request.device, "ranks": str(request.ranks), "batch": str(request.batch)}
    others = ("seq", "precision", "attention", "accounting", "only")
    link |= {name: str(getattr(request, name)) for name in others if _differs(request, name)}
    if request.device == OWN:
        link["own"] = own_to_link(request.own)
        link |= {"called": request.called} if request.called else {}
    link |= {name: shortest_text(getattr(request, name)) for name in OPTIONAL if _differs(request, name)}
    for name, value in request.assumed:
        if value != getattr(DEFAULT.assumed, name):
            link[name] = shortest_text(value) if isinstance(value, float) else str(int(value))
    return link


def own_to_link(own: tuple[float, ...]) -> str:
    return "_".join(shortest_text(value) for value in own)


def _differs(request: Request, name: str) -> bool:
    return getattr(request, name) != getattr(DEFAULT, name)


def of_link(link: Mapping[str, str]) -> Request:
    """The request of a link. Raises `RequestError`, which names what cannot be read."""
    given: dict[str, Any] = {known.name: link[known.name] for known in fields(Request) if known.name in link}
    given.pop("assumed", None)
    for name in _NUMBERS:
        if name in given:
            given[name] = _whole(name, given[name])
    for name, most in OPTIONAL.items():
        if name in given:
            given[name] = _fraction(name, given[name], most)
    given.setdefault("batch", default_batch(given.get("ranks", DEFAULT.ranks)))
    allowed = {
        "device": (*device_names(), OWN),
        "precision": ("bf16", "fp32"),
        "attention": get_args(AttentionName),
        "accounting": ACCOUNTINGS,
        "only": tuple(NAMES),
    }
    for name, known in allowed.items():
        if name in given and given[name] not in known:
            names = ", ".join(known)
            raise RequestError(
                sentence("The link's {field} “{text}” is not one of {names}.", field=name, text=given[name][:40], names=names)
            )
    if "model" in given:
        given["model"] = _known_model(given["model"])
    if given.get("device") != OWN:  # the user's figures are used only with the user's device
        given.pop("own", None)
        given.pop("called", None)
    elif not given.get("own"):
        raise RequestError(sentence("The link names a custom device without its figures."))
    else:
        given["own"] = _figures(given["own"])
        made(given.get("called", ""), given["own"])
    assumed = {name: link[name] for name in Assumptions.model_fields if name in link}
    return replace(Request(**given), assumed=Assumptions.model_validate(assumed))


def serving_of_link(link: Mapping[str, str]) -> Serving | None:
    """The settings for serving of a link; None if it is for training. Raises `RequestError`."""
    if link.get(FOR) != SERVING:
        return None
    return Serving(**{known.name: _whole(known.name, link[known.name]) for known in fields(Serving) if known.name in link})


def serving_to_link(serving: Serving | None) -> dict[str, str]:
    if serving is None:
        return {}
    asked = {known.name: str(getattr(serving, known.name)) for known in fields(Serving) if getattr(serving, known.name)}
    return {FOR: SERVING} | asked


def _fraction(name: str, text: str, most: float) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= most:
        raise RequestError(
            sentence(
                "The link's {field} “{text}” is not a number from 0 to {most}.", field=name, text=text[:20], most=f"{most:g}"
            )
        )
    return value


def _known_model(code: str) -> str:
    """The model as it is written in links. Raises `RequestError`."""
    try:
        return model_to_link(model_of_link(code))
    except LinkError as error:
        raise RequestError(error.sentence) from error


def _whole(name: str, text: str) -> int:
    if not text.isascii() or not text.isdigit() or not (name in _OR_NONE or int(text)) or int(text) > MOST:
        raise RequestError(
            sentence(
                "The link's {field} “{text}” is not a whole number from 1 to {most}.",
                field=name,
                text=text[:20],
                most=f"{MOST:,}",
            )
        )
    return int(text)


def _figures(text: str) -> tuple[float, ...]:
    try:
        figures = tuple(float(part) for part in text.split("_"))
    except ValueError:
        figures = ()
    if len(figures) >= _OF_OLDER_LINKS:  # a link from before the last figures were there
        defaults = [_figure(DeviceSpec.model_fields[name].default, OWN_FIELDS[name]) for name in list(OWN_FIELDS)[len(figures) :]]
        figures += tuple(defaults)
    if len(figures) != len(OWN_FIELDS):
        raise RequestError(
            sentence("The link's device “{text}” must have {count} figures.", text=text[:60], count=len(OWN_FIELDS))
        )
    return figures
