"""Files made of a chart."""

from __future__ import annotations

from io import BytesIO
from xml.etree import ElementTree as ET

import pandas as pd
import pytest

from engine.topology import Mesh
from pages.charts import beside, memory
from pages.charts.drawing import Drawing
from pages.charts.look import View, look
from pages.charts.words import Language
from pages.shared.drawing import as_csv, as_png, as_svg, packed
from tests.charts import made_up


def drawn(language: Language) -> Drawing:
    return packed(beside.memory(None, made_up.predicted_memory(Mesh({"pp": 2})), None, "", look(View("dark", language))))


@pytest.mark.parametrize("language", ["en", "zh"])
def test_an_svg_has_the_title_the_numbers_and_the_background(language: Language):
    drawing = drawn(language)
    root = ET.fromstring(as_svg(drawing))
    texts = {"".join(element.itertext()) for element in root.iter("{http://www.w3.org/2000/svg}text")}
    assert {drawing.title, drawing.subject, "42", "21"} <= texts
    assert look(View("dark", language)).background.lower() in as_svg(drawing).decode().lower()


def test_a_png_is_sharp_and_wide_enough_for_a_slide():
    png = as_png(drawn("zh"))
    assert png.startswith(b"\x89PNG")
    assert int.from_bytes(png[16:20]) >= 1920


def test_a_chart_of_two_parts_is_exported_too():
    drawing = packed(memory.curve(made_up.memory_curve(), 0, look(View("light", "en"))))
    assert drawing.title.encode() in as_svg(drawing)


def test_a_csv_is_the_same_table_in_every_language():
    assert as_csv(drawn("en")) == as_csv(drawn("zh"))
    pd.testing.assert_frame_equal(pd.read_csv(BytesIO(as_csv(drawn("en")))), drawn("en").table, check_names=False)
