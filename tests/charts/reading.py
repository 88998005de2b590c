"""Reads data, marks and colours from a Vega-Lite spec."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any


def views(spec: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Every single view of a layered or concatenated spec."""
    parts = [part for key in ("layer", "vconcat", "hconcat") for part in spec.get(key, ())]
    if not parts:
        yield spec
    for part in parts:
        yield from views({"data": spec.get("data"), **part})


def marks(spec: dict[str, Any], kind: str) -> list[tuple[dict[str, Any], list[dict[str, Any]]]]:
    """(view, rows) for every view that draws `kind`."""
    return [(view, spec["datasets"][view["data"]["name"]]) for view in views(spec) if view["mark"]["type"] == kind]


def colour_of(view: dict[str, Any]) -> dict[str, str]:
    """Name → colour, of a view's colour scale."""
    scale = view["encoding"]["color"]["scale"]
    return dict(zip(scale["domain"], scale["range"], strict=True))
