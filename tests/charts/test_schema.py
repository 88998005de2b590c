"""Every kind of chart is valid in Vega-Lite's schema. The pages do not validate, because it takes long."""

from __future__ import annotations

import json
import re
from collections.abc import Callable

import pytest
from altair.vegalite.v6.schema.core import Root

from engine.spec import LayoutSpec
from engine.topology import Mesh
from pages.charts import beside, experts, loss, matrix, memory, timeline, traffic
from pages.charts.drawing import Drawing
from pages.charts.look import LIGHT
from pages.charts.roles import roles_of
from tests.charts import made_up

LAYOUT, MESH = LayoutSpec(dp=2, pp=2), Mesh({"dp": 2, "pp": 2})
ROLES = roles_of(MESH, 1)
PAIR = Mesh({"tp": 2})


def whole_step() -> Drawing:
    drawn = timeline.overview(
        timeline.replayed_panel("textbook", made_up.textbook(LayoutSpec(pp=2), 1000), ["0", "1"], LIGHT.say), LIGHT
    )
    assert drawn is not None
    return drawn


PEAK, PASSED = made_up.memory_peak(MESH), made_up.traffic()

DRAWINGS: dict[str, Callable[[], Drawing]] = {
    "memory beside": lambda: beside.memory(PEAK, PEAK.assign(source="formula"), 2**20, "toy", LIGHT, ROLES),
    "curve": lambda: memory.curve(made_up.memory_curve(), 0, LIGHT),
    "traffic beside": lambda: beside.traffic(PASSED, PASSED.assign(source="formula"), 2, "wire", None, LIGHT),
    "by_rank": lambda: traffic.by_rank(made_up.traffic(), 2, "wire", LIGHT, roles_of(PAIR, 1)),
    "matrix": lambda: matrix.matrix(made_up.traffic(), PAIR, "payload", LIGHT, roles_of(PAIR, 1)),
    "measured": lambda: timeline.measured(made_up.spans(LAYOUT, 4), MESH, LIGHT, ROLES),
    "textbook": lambda: timeline.textbook(made_up.textbook(LayoutSpec(pp=2), 4), ["stage 0", "stage 1"], LIGHT),
    "overview": whole_step,
    "loss": lambda: loss.loss(made_up.steps([5.5, 4.25]), LIGHT),
    "load of experts": lambda: experts.by_expert(made_up.expert_load(), LIGHT),
    "load of ranks": lambda: experts.by_step(made_up.expert_load(), LIGHT),
    "growing loss": lambda: loss.growing([5.5, 4.25], 20, LIGHT),
}


@pytest.mark.parametrize("name", DRAWINGS)
def test_a_chart_is_valid_vega_lite(name: str):
    Root.from_dict(DRAWINGS[name]().spec, validate=True)


@pytest.mark.parametrize("name", DRAWINGS)
def test_a_chart_has_no_blank_left(name: str):
    assert not re.findall(r'"\$[^"]*"(?!:)', json.dumps(DRAWINGS[name]().spec))


def test_an_invalid_chart_would_be_found():
    spec = DRAWINGS["loss"]().spec
    with pytest.raises(Exception, match="nonsense"):
        Root.from_dict(spec | {"mark": {"type": "nonsense"}}, validate=True)
