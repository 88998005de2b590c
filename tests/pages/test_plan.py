"""Plan without a browser: its link, the user's own device, layouts that do not fit, and published figures.

Tests use the papers' account of memory, which is fast.
"""

from __future__ import annotations

import json
import pickle
import re
from dataclasses import replace
from pathlib import Path
from urllib.parse import parse_qs

import pandas as pd
import pytest
from streamlit.testing.v1 import AppTest

from engine import api
from engine.catalog import MODELS
from engine.devices import DEVICES, DeviceSpec
from engine.launch.dry_run.service import DryRunState
from engine.planner.serving import serving as predicted
from engine.predict.memory import memory
from engine.predict.speed.rates import Assumptions
from engine.spec import LayoutSpec, RequestError, RunSpec
from pages.charts.units import in_bytes
from pages.charts.words import words
from pages.plan import heatmap, serving
from pages.plan.cases import cases
from pages.plan.cells import cell
from pages.plan.dry_run import compared, passes_of, progress_text, signed
from pages.plan.found import MOST_POINTS, TOP, found
from pages.plan.published import concerns
from pages.plan.request import DEFAULT, OWN, Request, Serving, figures_of, made, of_link, own_to_link, serving_of_link, to_link
from pages.shared import links
from tests.pages.opened import opened, text
from tests.pages.stand_in import service

SMALL = {"model": "gpt2-1.5b", "device": "h100-80gb", "ranks": "8", "batch": "16", "accounting": "korthikanti2022"}


def page(**link: str) -> AppTest:
    app = opened("plan", service(Path("nowhere"))[0], **(SMALL | link))
    assert not app.exception
    return app


def same(one: DeviceSpec, other: DeviceSpec) -> bool:
    """Whether all figures are equal, up to rounding of a product."""
    pairs = [(getattr(one, name), getattr(other, name)) for name in DeviceSpec.model_fields if name not in ("name", "source")]
    return all(a == b if b is None else a == pytest.approx(b, rel=1e-12) for a, b in pairs)


def linked(app: AppTest) -> dict[str, str]:
    return {name: value if isinstance(value, str) else value[0] for name, value in app.query_params.items()}


# ------------------------------------------------------------------------------------------------------------- the link


@pytest.mark.parametrize(
    "request_",
    [
        DEFAULT,
        Request(model="llama3-8b", device="l40s", ranks=6, batch=24, seq=512, precision="fp32", accounting="zero2020"),
        Request(model="llama.l4.h64.a4.v256.s64.f0.rotary_width-8.qk_norm-head.tied-true"),
        Request(device=OWN, own=figures_of(DEVICES["mi300x"]), called="mine & yours"),
        Request(assumed=DEFAULT.assumed.model_copy(update={"matmul_efficiency": 0.61, "fused_accumulation": True})),
        Request(reserve=0.0, only="megatron", tokens=3e11, price=2.5, watts=1000.0),
    ],
    ids=["default", "all fields", "own model", "own device", "assumptions", "reserve and cost"],
)
def test_a_link_restores_the_request(request_: Request) -> None:
    assert of_link(to_link(request_)) == request_


@pytest.mark.parametrize(
    ("link", "why"),
    [
        ({"model": "gpt-9"}, "The link's model “gpt-9” is neither a name, such as"),
        ({"model": "llama.l4.h63.a4.v256.s64.f0"}, "heads=4 does not divide hidden=63"),
        ({"ranks": "0"}, "not a whole number from 1 to 1,000,000"),
        ({"ranks": "-3"}, "not a whole number"),
        ({"device": "own"}, "without its figures"),
        ({"device": "own", "own": "1_2_x"}, "“1_2_x” must have 22 figures"),
        ({"device": "own", "own": "80_1_1_1_1_1_1_1_0_1"}, "node_size=0 must be greater than or equal to 1"),
        ({"device": "own", "own": "nan_1_1_1_1_1_1_1_8_0.8"}, "memory_bytes=nan must be a finite number"),
        ({"device": "own", "own": "80_1_1_1_1_1_1_1_1e999_0.8"}, "node_size=inf must be a finite number"),
        ({"dp_overlap": "1.5"}, "dp_overlap"),
        ({"reserve": "-1"}, "The link's reserve “-1” is not a number from 0 to 1e\\+06"),
        ({"tokens": "many"}, "The link's tokens “many” is not a number from 0 to 1e\\+18"),
        ({"only": "keras"}, "The link's only “keras” is not one of megatron, torchtitan, deepspeed"),
    ],
)
def test_a_link_that_cannot_be_read_is_refused_with_the_reason(link: dict[str, str], why: str) -> None:
    with pytest.raises(RequestError, match=why):
        of_link(link)


def test_a_link_without_a_batch_has_that_of_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    searched: list[int] = []
    monkeypatch.setattr("engine.api.planner.search", lambda *asked, **_: searched.append(asked[3]))
    for ranks in (1, 8, 1024, 1_000_000):
        api.search("gpt3-175b", ranks, "h100-80gb")
        assert of_link({"ranks": str(ranks)}).batch == searched.pop() == min(2 * ranks, 1_000_000)


def test_a_known_device_can_be_changed_into_ones_own_without_losing_figures() -> None:
    for device in DEVICES.values():
        assert same(made(device.name, figures_of(device)), device)


# ------------------------------------------------------------------------------------------------------------- the page


def test_the_best_layout_is_shown_and_links_to_other_pages_have_it() -> None:
    app = page()
    assert re.search(r"gpt2-1.5b on 8 × h100-80gb: dp\d+.tp\d+.pp\d+ fits", text(app))
    assert linked(app) == SMALL
    [lab] = [link.proto for link in app.get("page_link") if link.proto.label == "Open in the Lab"]
    carried = parse_qs(lab.query_string)
    assert carried["device"] == ["h100-80gb"]
    choice = links.decode(carried["spec"][0])
    assert choice.ranks == 8
    assert choice["layout.dp"] * choice["workload.microbatches"] * choice["workload.microbatch_size"] == 16
    labels = {b.proto.label for b in app.get("download_button")}
    assert {"Settings for Megatron-LM", "Settings for torchtitan", "Settings for DeepSpeed"} <= labels
    assert "Why one layout is faster" in text(app)


def test_a_control_changes_the_link_and_removes_the_row() -> None:
    app = page(row="3", lang="en")
    assert "Number 4 of the" in text(app)
    app.number_input(key="plan/ranks").set_value(4).run()
    assert linked(app) == SMALL | {"ranks": "4", "lang": "en"}


def test_a_layout_that_does_not_fit_names_the_stage_and_changes() -> None:
    app = page(model="llama3-405b", ranks="8")
    assert "no layout fits" in text(app)
    assert app.warning[0].value.startswith("Rank 0, stage 0 of dp1.tp1.pp8, needs 846 GiB beside ")
    assert "that are kept free; the device has 74.5 GiB" in app.warning[0].value


def test_numbers_without_a_layout_are_refused_with_the_arithmetic() -> None:
    app = page(model="gpt3-175b", ranks="7919")
    assert app.error[0].value.startswith("No dp × tp × pp = 7919 fits")


def test_a_device_file_is_read_or_refused_with_the_reason() -> None:
    app = page()
    app.selectbox(key="plan/device").set_value(OWN).run()
    assert same(of_link(linked(app)).hardware, DEVICES["h100-80gb"])
    app.number_input(key="plan/own/memory_bytes").set_value(12.5).run()
    assert of_link(linked(app)).hardware.memory_bytes == 12_500_000_000
    app.file_uploader[0].upload("bad.json", b'{"name": "x"}', "application/json").run()
    assert "bad.json: device needs memory_bytes, bf16_flops" in app.error[0].value
    device = DEVICES["l40s"].model_dump() | {"name": "my own card"}
    app.file_uploader[0].upload("good.json", json.dumps(device).encode(), "application/json").run()
    assert not app.exception
    assert linked(app)["called"] == "my own card"
    assert same(of_link(linked(app)).hardware, DEVICES["l40s"])
    assert "gpt2-1.5b on 8 × my own card" in text(app)


def test_the_page_is_in_chinese() -> None:
    app = page(lang="zh")
    assert words("zh")("Model") in text(app)


# ------------------------------------------------------------------------------------------------- what the server keeps


def test_the_server_keeps_only_the_shown_layouts_of_a_search_and_finds_any_other() -> None:
    asked = Request(accounting="korthikanti2022")
    plan = asked.plan()
    hidden = next(row for row in range(len(plan.layouts) - 1, 0, -1) if row not in found(asked))
    few = found(asked, hidden)
    rows = few.layouts.index
    assert (few.count, few.feasible) == (len(plan.layouts), plan.feasible)
    assert {*range(TOP), *plan.layouts.index[plan.layouts["pareto"]], hidden} <= {*rows}
    assert len(rows) < 1.5 * MOST_POINTS
    assert len(pickle.dumps(few)) < 700_000 < len(pickle.dumps(plan)) / 20
    same_rows = few.layouts.drop(columns="drawn").astype(dict.fromkeys(plan.layouts.select_dtypes("category"), str))
    assert same_rows.equals(plan.layouts.iloc[rows].astype(dict.fromkeys(plan.layouts.select_dtypes("category"), str)))
    for row in (0, hidden):
        assert few.spec(row) == plan.spec(row)
        assert few.parts(row)["compute"] == plan.step_time.compute[row]


# -------------------------------------------------------------------------------------------------------------- serving


def test_serving_is_in_the_link_and_its_numbers_are_the_engines() -> None:
    asked = {"model": "gpt3-13b", "device": "h100-80gb", "ranks": "4", "batch": "8", "for": "serving"}
    asked |= {"length": "1024", "row": "1"}
    app = opened("plan", service(Path("nowhere"))[0], **asked)
    assert not app.exception
    assert linked(app) == asked
    table = predicted(MODELS["gpt3-13b"], 4, DEVICES["h100-80gb"], 1024)
    best, second = table.iloc[0], table.iloc[1]
    assert "Serving gpt3-13b on 4 × h100-80gb: it fits" in text(app)
    assert f"Number 2 of the {table['fits'].sum()} layouts that fit, of {len(table)}" in text(app)
    assert str(second["layout"]) in text(app)
    assert in_bytes(int(second["parameters_bytes"])) in text(app)
    app.number_input(key="plan/sequences").set_value(7).run()
    assert linked(app) == {name: value for name, value in asked.items() if name != "row"} | {"sequences": "7"}
    app.segmented_control(key="plan/for").set_value("training").run()
    assert linked(app) == {name: asked[name] for name in ("model", "device", "ranks", "batch")}
    assert float(best["tokens_per_second"]) > float(second["tokens_per_second"])


def test_the_lab_shows_the_same_parameters_and_cache_as_serving() -> None:
    asked = serving.Asked(Request(model="llama3-8b", ranks=4), Serving(length=1000), row=1)
    table, peaks = predicted(MODELS["llama3-8b"], 4, DEVICES["h100-80gb"], 1000), memory(asked.spec).peaks
    assert asked.spec.layout.code == table["layout"][1]
    assert max(peak.bytes["parameters"] for peak in peaks) == table["parameters_bytes"][1]
    assert max(peak.bytes["kv_cache"] for peak in peaks) == table["cache_bytes"][1]
    app = opened("plan", service(Path("nowhere"))[0], model="llama3-8b", device="h100-80gb", ranks="4", **{"for": "serving"})
    assert "Open in the Lab" in [link.proto.label for link in app.get("page_link")]


def test_a_model_that_cannot_be_served_has_the_reason() -> None:
    base = {"device": "h100-80gb", "ranks": "4", "for": "serving"}
    app = opened("plan", service(Path("nowhere"))[0], model="gpt3-175b", lang="zh", **base)
    assert not app.exception
    assert "74.5 GiB" in app.warning[0].value
    assert "tp" in app.warning[0].value
    app = opened("plan", service(Path("nowhere"))[0], model="bert-base", **base)
    assert "Bert does not predict the next token" in app.error[0].value
    with pytest.raises(RequestError, match="The link's length “x” is not a whole number"):
        serving_of_link({"for": "serving", "length": "x"})
    assert serving_of_link({"length": "x"}) is None


# ------------------------------------------------------------------------------------------- what stands below the answer


def test_a_cell_of_the_map_has_a_layout_or_the_reason() -> None:
    asked = Request(accounting="korthikanti2022")
    small, large = cell(replace(asked, model="gpt2-1.5b", ranks=8, batch=16)), cell(replace(asked, ranks=1, batch=8))
    assert small["mfu"] > 0.1
    assert large["mfu"] != large["mfu"]
    assert large["reason"].endswith(", and the device has 74.5 GiB")


def test_the_map_is_drawn_with_every_combination(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heatmap, "MODELS", ("gpt2-1.5b", "gpt3-175b", "gpt3-13b"))
    monkeypatch.setattr(heatmap, "COUNTS", (1, 8))
    app = page(map="1", ranks="4")
    assert "3 of 6 combinations fit" in text(app)
    assert linked(app)["map"] == "1"


def test_a_search_that_takes_too_long_is_reported_in_its_cell(monkeypatch: pytest.MonkeyPatch) -> None:
    def searched(asked: Request) -> dict[str, object]:
        if asked.ranks == 8:
            raise RequestError("it took too long")
        return cell(asked)

    monkeypatch.setattr(heatmap, "searched", searched)
    monkeypatch.setattr(heatmap, "MODELS", ("gpt2-1.5b",))
    monkeypatch.setattr(heatmap, "COUNTS", (1, 8))
    assert "1 of 2 combinations fit" in text(page(map="1", ranks="4"))


def test_published_rows_of_the_model_or_the_device_come_first() -> None:
    found = cases(Assumptions())
    near = [r for r in found if concerns(r, Request(model="gpt3-175b", device="a100-80gb"))]
    assert {r.model for r in near if not r.device} == {"gpt3-175b"}
    assert sum(r.quantity == "speed" for r in near) == 10 + 6 + 6
    assert [r for r in found if concerns(r, Request(model="gpt2-1.5b", device="rtx-4090"))] == []


def test_a_dry_run_and_the_formula_are_compared_by_stage() -> None:
    spec = RunSpec(layout=LayoutSpec(pp=2))
    peaks = [
        {"rank": p.stage, "pp": p.stage, "category": category, "bytes": size * (2 if p.stage else 1)}
        for p in memory(spec).peaks
        for category, size in p.bytes.items()
    ]
    rows = compared(DryRunState("x", spec, None, 0.0, "done", peaks=pd.DataFrame(peaks)))
    totals = rows[rows["category"] == "total"].set_index("stage")
    assert totals["error"].to_dict() == {0: 0.0, 1: -0.5}
    assert totals["formula"].to_dict() == {p.stage: p.total for p in memory(spec).peaks}
    assert (signed(0.0), signed(-0.5), signed(0.0012), signed(0.00001)) == ("0.00%", "−50.00%", "+0.12%", "0.00%")


def test_a_dry_run_shows_its_progress_and_remaining_time() -> None:
    spec, say = RunSpec(layout=LayoutSpec(pp=2)), words("en")
    state = DryRunState("x", spec, None, 0.0, of=2)
    assert progress_text(state, spec, 2.0, say) == "0 of 2 stages · loading torch, 2 s"
    state = replace(state, done=1, actions=1500, of_actions=2000)
    assert progress_text(state, spec, 30.0, say) == "1 of 2 stages · 1,500 of 2,000 actions · 30 s, about 10 s left"
    assert progress_text(state, RunSpec(), 30.0, say).startswith("Of another layout, dp1.tp1.pp2 · ")
    assert passes_of(spec, 0) == 2 * spec.workload.microbatches * spec.model.layers // 2


@pytest.mark.parametrize("language", ["en", "zh"])
@pytest.mark.parametrize("use", ["training", "serving"])
def test_the_name_of_the_users_device_is_escaped(language: str, use: str) -> None:
    """The browser would fetch an image in it when somebody opens the link."""
    own = own_to_link(figures_of(DEVICES["l40s"]))
    app = page(device=OWN, own=own, called="![a](http://b)_*c*", lang=language, **{"for": use})
    assert not app.exception
    assert r"!\[a](http\://b)\_\*c\*" in text(app)
    assert "![a](" not in text(app)


def test_figures_of_the_users_device_survive_the_link_exactly() -> None:
    own = figures_of(DeviceSpec.model_validate(DEVICES["l40s"].model_dump() | {"memory_bytes": 85_899_345_920}))
    assert of_link(to_link(Request(device=OWN, own=own))).hardware.memory_bytes == 85_899_345_920
    assumed = Request(assumed=Assumptions(matmul_efficiency=1 / 3))
    assert of_link(to_link(assumed)) == assumed
