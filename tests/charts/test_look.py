from __future__ import annotations

import subprocess
import sys
from typing import get_args

import pytest

from engine.schedule import Kind
from engine.tables import CATEGORIES, KV_CACHE
from pages.charts.look import DARK, LIGHT, Look, View, lane, look

STYLES = pytest.mark.parametrize("style", [LIGHT, DARK], ids=["light", "dark"])


def luminance(colour: str) -> float:
    """Relative luminance, as WCAG 2 defines it."""
    channels = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
    r, g, b = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels)
    return 0.2126 * r + 0.7152 * g + 0.0722 * b


def contrast(one: str, other: str) -> float:
    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


@STYLES
def test_data_stands_out_from_the_background(style: Look):
    least = 3.0 if style.theme == "light" else 6.5
    for colour in (style.blue, style.orange, style.green, style.pink, style.grey, style.ink, style.brown):
        assert contrast(colour, style.background) >= least, colour
    for colour in (*style.categories, *style.axis.values(), *style.lanes):
        assert contrast(colour, style.background) >= 3.0, colour


@STYLES
def test_text_on_a_bar_has_enough_contrast(style: Look):
    for name in ("forward (F)", "backward (B, I)", "weight gradient (W)", "reduce, tie, gather, step"):
        assert contrast(style.on_colour, style.lane[name]) >= 3.0, name


@STYLES
def test_every_category_has_a_colour_of_its_own(style: Look):
    assert list(style.category) == [*CATEGORIES, KV_CACHE]
    assert len(set(style.category.values())) == len(style.category)


@STYLES
def test_the_ramp_of_stages_has_distinct_ends(style: Look):
    assert (style.stage(0, 1), style.stage(0, 16), style.stage(15, 16)) == (style.stages[0], *style.stages)
    assert len({style.stage(s, 16) for s in range(16)}) == 16


def test_a_theme_has_a_look():
    assert (look(View("light", "en")), look(View("dark", "en"))) == (LIGHT, DARK)


def test_every_kind_of_span_has_a_colour():
    kinds = (*get_args(Kind), "all_reduce", "reduce_scatter", "all_gather")
    assert {lane(kind) for kind in kinds} == set(LIGHT.lane)


def test_charts_need_neither_streamlit_nor_torch():
    code = (
        "import sys; from pages.charts import loss, memory, timeline, traffic; print({'streamlit', 'torch'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
