"""Who sits where: every rank in its stage and replica, with the layers and the slice of their weights that it holds."""

from __future__ import annotations

from html import escape

from engine.spec import LayoutSpec, ModelSpec
from engine.topology import Coordinate, Mesh
from pages.charts.look import Look
from pages.charts.units import plural

_CELL_REM, _GAP_REM, _PADDING_REM = 8.0, 0.5, 1.4  # as in style.css


def rank_grid(model: ModelSpec, layout: LayoutSpec, style: Look) -> str:
    """HTML: a box a stage, in it a group a replica, in it a cell a rank. Groups stand in rows of equal cells."""
    mesh = Mesh(layout.dp, layout.tp, layout.pp)
    # The least width in which a replica stands with its slices side by side, four at most; its box adds the padding.
    slices = min(mesh.tp, 4)
    replica = slices * _CELL_REM + (slices - 1) * _GAP_REM
    stages = "".join(_stage(model, layout, mesh, stage, replica, style) for stage in range(mesh.pp))
    return f'<div role="group" aria-label="Who holds what">{_row(stages, replica + _PADDING_REM)}</div>'


def layers_of(model: ModelSpec, layout: LayoutSpec, stage: int) -> str:
    """The layers of a stage, chunk by chunk: "layers 0–1", "layers 0–1, 4–5"."""
    counts = layout.chunk_layers(model.layers)
    runs = []
    for chunk, count in enumerate(counts):
        first = sum(counts[:chunk])
        if layout.placement[chunk] == stage and count:
            runs.append(f"{first}" if count == 1 else f"{first}–{first + count - 1}")
    if not runs:
        return "no layer"
    return f"{'layer' if runs == [runs[0]] and '–' not in runs[0] else 'layers'} {', '.join(runs)}"


def ends_of(layout: LayoutSpec, stage: int) -> list[str]:
    """Which ends of the model a stage holds besides its layers."""
    return ["embedding"] * (stage == layout.placement[0]) + ["head"] * (stage == layout.placement[-1])


def slice_of(model: ModelSpec, tp: int, at: int) -> tuple[str, str]:
    """Which part of each layer's weights one of `tp` ranks holds, in two short lines."""
    if tp == 1:
        return f"all {plural(model.heads, 'head')}" if model.heads > 1 else "its one head", "whole layers"
    each = model.heads // tp
    first = at * each
    heads = f"head {first}" if each == 1 else f"heads {first}–{first + each - 1}"
    return f"{heads} of {model.heads}", f"1/{tp} of each layer"


def _row(cells: str, least_rem: float) -> str:
    return f'<div class="ss-row" style="--least:{least_rem:g}rem">{cells}</div>'


def _stage(model: ModelSpec, layout: LayoutSpec, mesh: Mesh, stage: int, replica_rem: float, style: Look) -> str:
    replicas = "".join(_replica(model, layout, mesh, stage, dp) for dp in range(mesh.dp))
    name = f"Stage {stage}" if mesh.pp > 1 else "One stage"
    return (
        f'<section class="ss-stage" aria-label="{name}" style="--stage:{style.stage(stage, mesh.pp)}">'
        f"<header>{name}</header>{_row(replicas, replica_rem)}</section>"
    )


def _replica(model: ModelSpec, layout: LayoutSpec, mesh: Mesh, stage: int, dp: int) -> str:
    name = f"<header>replica {dp}</header>" if mesh.dp > 1 else ""
    cells = "".join(_cell(model, layout, mesh, Coordinate(stage, dp, tp)) for tp in range(mesh.tp))
    return f'<div class="ss-replica">{name}{_row(cells, _CELL_REM)}</div>'


def _cell(model: ModelSpec, layout: LayoutSpec, mesh: Mesh, at: Coordinate) -> str:
    rank, ends = mesh.rank(at), ends_of(layout, at.pp)
    held = [layers_of(model, layout, at.pp), *slice_of(model, mesh.tp, at.tp)]
    if layout.zero:
        held.append(f"ZeRO {layout.zero} over {mesh.dp} replicas")
    told = escape(f"rank {rank}: stage {at.pp}, replica {at.dp}, slice {at.tp}; {', '.join([*ends, *held])}")
    chips = "".join(f"<i>{end}</i>" for end in ends)
    lines = "".join(f"<span>{escape(line)}</span>" for line in held)
    return f'<div class="ss-rank" role="img" title="{told}" aria-label="{told}"><div><b>{rank}</b>{chips}</div>{lines}</div>'
