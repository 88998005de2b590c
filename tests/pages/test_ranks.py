from __future__ import annotations

import re

import pytest

from engine.catalog import MODELS
from engine.spec import LayoutSpec, ModelSpec
from engine.topology import Mesh
from pages.charts.look import LIGHT
from pages.charts.roles import roles_of
from pages.lab.ranks import rank_grid

TINY = MODELS["gpt-tiny"]


def cells(model: ModelSpec, layout: LayoutSpec) -> list[str]:
    return re.findall(r'class="ss-rank" title="([^"]*)"', rank_grid(model, layout, LIGHT))


def test_every_rank_has_its_coordinate_and_what_it_holds():
    assert cells(TINY, LayoutSpec(dp=2, tp=2, pp=2)) == [
        "rank 0: stage 0, replica 0, slice 0; embedding, layers 0–1, heads 0–1 of 4, 1/2 of each layer",
        "rank 1: stage 0, replica 0, slice 1; embedding, layers 0–1, heads 2–3 of 4, 1/2 of each layer",
        "rank 2: stage 0, replica 1, slice 0; embedding, layers 0–1, heads 0–1 of 4, 1/2 of each layer",
        "rank 3: stage 0, replica 1, slice 1; embedding, layers 0–1, heads 2–3 of 4, 1/2 of each layer",
        "rank 4: stage 1, replica 0, slice 0; head, layers 2–3, heads 0–1 of 4, 1/2 of each layer",
        "rank 5: stage 1, replica 0, slice 1; head, layers 2–3, heads 2–3 of 4, 1/2 of each layer",
        "rank 6: stage 1, replica 1, slice 0; head, layers 2–3, heads 0–1 of 4, 1/2 of each layer",
        "rank 7: stage 1, replica 1, slice 1; head, layers 2–3, heads 2–3 of 4, 1/2 of each layer",
    ]


def test_one_rank_holds_everything():
    assert cells(TINY, LayoutSpec()) == [
        "rank 0: stage 0, replica 0, slice 0; embedding, head, layers 0–3, all 4 heads, whole layers"
    ]


def test_an_uneven_split_is_shown():
    told = cells(TINY, LayoutSpec(pp=3, split=(0, 3, 1)))
    assert [re.search(r"(no layer|layers? [\d–]+)", t)[0] for t in told] == ["no layer", "layers 0–2", "layer 3"]  # type: ignore[index]


@pytest.mark.parametrize("layout", [LayoutSpec(dp=16), LayoutSpec(tp=4, dp=2, pp=2), LayoutSpec(pp=4, dp=4)])
def test_each_rank_is_shown_once_and_in_order(layout: LayoutSpec):
    ranks = [int(re.match(r"rank (\d+)", told)[1]) for told in cells(TINY, layout)]  # type: ignore[index]
    mesh = layout.mesh
    assert ranks == list(range(mesh.size))


def test_the_stages_together_have_all_layers():
    held = [re.search(r"layers? (\d+)(?:–(\d+))?", t) for t in cells(MODELS["gpt-medium"], LayoutSpec(pp=5))]
    covered = [n for m in held if m for n in range(int(m[1]), int(m[2] or m[1]) + 1)]
    assert covered == list(range(12))


@pytest.mark.parametrize(("code", "cells"), [("dp2.tp2.pp2", 8), ("dp16.tp8.pp8", 64), ("dp2.tp8.pp32", 32)])
def test_with_very_many_ranks_one_replica_is_shown(code: str, cells: int):
    model = MODELS["gpt3-175b"]
    html = rank_grid(model, LayoutSpec(**LayoutSpec.degrees(code)), LIGHT)
    assert html.count('class="ss-rank"') == cells


def test_the_chosen_rank_is_always_shown():
    layout = LayoutSpec(dp=16, tp=8, pp=8)
    mesh = Mesh({"dp": 16, "tp": 8, "pp": 8})
    rank = mesh.rank({"pp": 3, "dp": 5, "tp": 2})
    html = rank_grid(MODELS["gpt3-175b"], layout, LIGHT, roles_of(mesh, rank))
    assert f'data-rank="{rank}" data-role="self"' in html


def test_with_very_many_stages_those_in_the_middle_are_left_out():
    model, layout = ModelSpec(layers=1024), LayoutSpec(pp=1024)
    html = rank_grid(model, layout, LIGHT, roles_of(Mesh({"pp": 1024}), 500))
    assert "and 895 more stages" in html
    assert [int(rank) for rank in re.findall(r'data-rank="(\d+)"', html)] == [*range(64), 500, *range(960, 1024)]
