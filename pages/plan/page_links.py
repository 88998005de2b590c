"""Links from a layout of a plan to other pages."""

from __future__ import annotations

from engine.devices import DEVICES, DeviceSpec
from engine.spec import RunSpec
from pages.charts.words import Words
from pages.shared import links, navigation
from pages.shared.beside import to_link, with_last_compared
from pages.shared.choice import Choice
from pages.shared.service import Service


def to_lab(service: Service, spec: RunSpec, device: DeviceSpec, words: Words) -> None:
    parameters = {"spec": _code(service, spec), "device": device.name if device.name in DEVICES else "none"}
    navigation.link("lab", words("Open in the Lab"), "science", parameters)


def to_compare(service: Service, spec: RunSpec, words: Words) -> None:
    navigation.link("compare", words("Compare this"), "compare_arrows", to_link(with_last_compared([_code(service, spec)])))


def _code(service: Service, spec: RunSpec) -> str:
    return links.encode(Choice.of(spec, service.texts))
