"""A chart as a file: `python -m pages.shared.picture png|svg` reads a Vega-Lite spec with its data and prints the picture."""

from __future__ import annotations

import json
import sys

import vl_convert

_SCALE = 2  # device pixels to each pixel of a PNG


def picture(spec: str, kind: str) -> bytes:
    """The picture of a spec. Nothing is fetched: a spec that refers to an address fails."""
    chart = json.loads(spec)
    if kind == "svg":
        return vl_convert.vegalite_to_svg(chart, allowed_base_urls=[]).encode("utf-8")
    return vl_convert.vegalite_to_png(chart, scale=_SCALE, allowed_base_urls=[])


if __name__ == "__main__":
    sys.stdout.buffer.write(picture(sys.stdin.read(), sys.argv[1]))
