"""The three sets of colours cannot be taken for each other, with a colour-vision deficiency too.

Distances are Euclidean in OKLab (Ottosson 2020), times 100: black and white are 100 apart. Dichromacy is simulated with the
matrices of Machado, Oliveira and Fernandes 2009 for severity 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import numpy as np
import pytest

from pages.charts.look import DARK, LIGHT, Look, lane

STYLES = pytest.mark.parametrize("style", [LIGHT, DARK], ids=["light", "dark"])
VISION = {
    "normal": np.eye(3),
    "protanopia": np.array([[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]),
    "deuteranopia": np.array([[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]),
}
SEEN = pytest.mark.parametrize("vision", VISION)
_LMS = np.array(
    [
        [0.4122214708, 0.5363325363, 0.0514459929],
        [0.2119034982, 0.6806995451, 0.1073969566],
        [0.0883024619, 0.2817188376, 0.6299787005],
    ]
)
_LAB = np.array(
    [
        [0.2104542553, 0.7936177850, -0.0040720468],
        [1.9779984951, -2.4285922050, 0.4505937099],
        [0.0259040371, 0.7827717662, -0.8086757660],
    ]
)


def seen(colour: str, vision: str) -> np.ndarray:
    """The colour in OKLab, times 100, as seen with that vision. (3,)"""
    channels = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    return 100 * _LAB @ np.cbrt(_LMS @ np.clip(VISION[vision] @ linear, 0, 1))


def nearest(colours: Sequence[str], vision: str) -> float:
    """The least distance between two of the colours."""
    return min(float(np.linalg.norm(seen(one, vision) - seen(other, vision))) for one, other in combinations(colours, 2))


def test_black_and_white_are_a_hundred_apart():
    assert nearest(["#000000", "#FFFFFF"], "normal") == pytest.approx(100, abs=0.01)


def test_red_and_green_of_one_lightness_are_near_for_who_sees_no_difference():
    red, green = "#B3574F", "#6E7D40"
    assert nearest([red, green], "normal") > 2 * nearest([red, green], "deuteranopia")


@STYLES
@SEEN
def test_colours_of_a_set_are_distinct(style: Look, vision: str):
    for colours in (style.categories, tuple(style.axis.values()), style.lanes):
        assert nearest(colours, vision) >= 8.5


@STYLES
@SEEN
def test_colours_of_one_chart_are_distinct(style: Look, vision: str):
    """The curve of memory has categories above a strip of actions; the parts of a step are axes, compute, update and bubble."""
    assert nearest([*style.categories, *style.lanes], vision) >= 7
    assert nearest([*style.axis.values(), style.lane[lane("F")], style.lane[lane("step")], style.grey], vision) >= 6


@STYLES
@SEEN
def test_no_colour_of_one_set_is_taken_for_one_of_another(style: Look, vision: str):
    assert nearest([*style.categories, *style.lanes, *style.axis.values()], vision) >= 6
