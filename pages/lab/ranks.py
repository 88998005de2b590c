"""A grid of all ranks by stage and replica, with the layers and the slice of their weights that each holds."""

from __future__ import annotations

from html import escape

from engine.spec import LayoutSpec, ModelSpec
from engine.topology import Coordinate, Mesh
from pages.charts.look import Look
from pages.charts.roles import Role, Roles, role_name
from pages.charts.words import Words

_CELL_REM, _GAP_REM, _PADDING_REM = 8.0, 0.5, 1.4  # as in style.css
MOST_STAGES = 128  # if there are more, those in the middle are left out
MOST_CELLS = 64  # if there are more, only one replica of each stage is shown, and one slice if there are very many


def rank_grid(model: ModelSpec, layout: LayoutSpec, style: Look, roles: Roles | None = None) -> str:
    """HTML: a box for each stage, in it a group for each replica, in it a button for each rank.

    With `roles`, the button of the chosen rank is pressed, and those of its peers have their role as text.
    """
    mesh = layout.mesh
    # The least width of a replica with up to four slices side by side. Its box adds the padding.
    slices = min(mesh.tp, 4)
    replica = slices * _CELL_REM + (slices - 1) * _GAP_REM
    first, last = _shown_stages(mesh, roles)
    stages = "".join(_stage(model, layout, mesh, stage, replica, style, roles) for stage in first)
    if last:
        stages += f"<p>{escape(style.say('and {count} more stages', count=mesh.pp - len(first) - len(last)))}</p>"
        stages += "".join(_stage(model, layout, mesh, stage, replica, style, roles) for stage in last)
    label = escape(style.say("Model placement"))
    return f'<div role="group" aria-label="{label}">{_row(stages, replica + _PADDING_REM)}</div>'


def layers_of(model: ModelSpec, layout: LayoutSpec, stage: int, say: Words) -> str:
    """The layers of a stage, chunk by chunk: "layers 0–1", "layers 0–1, 4–5"."""
    runs, held, first = [], 0, 0
    for place, count in zip(layout.placement, layout.chunk_layers(model.layers), strict=True):
        if place == stage and count:
            runs.append(f"{first}" if count == 1 else f"{first}–{first + count - 1}")
            held += count
        first += count
    if not runs:
        return say("no layer")
    return say.plural("layer {runs}", "layers {runs}", held, runs=", ".join(runs))


def ends_of(layout: LayoutSpec, stage: int, say: Words) -> list[str]:
    """The ends of the model (embedding, head) that a stage holds besides its layers."""
    return [say("embedding")] * (stage == layout.placement[0]) + [say("head")] * (stage == layout.placement[-1])


def slice_of(model: ModelSpec, tp: int, at: int, say: Words) -> tuple[str, str]:
    """The part of each layer's weights that one of `tp` ranks holds, in two short lines."""
    if tp == 1:
        return say.plural("its one head", "all {count} heads", model.heads), say("whole layers")
    each = model.heads // tp
    first = at * each
    if each == 1:
        heads = say("head {first} of {count}", first=first, count=model.heads)
    else:
        heads = say("heads {first}–{last} of {count}", first=first, last=first + each - 1, count=model.heads)
    return heads, say("1/{tp} of each layer", tp=tp)


def _row(cells: str, least_rem: float) -> str:
    return f'<div class="ss-row" style="--least:{least_rem:g}rem">{cells}</div>'


def _stage(
    model: ModelSpec, layout: LayoutSpec, mesh: Mesh, stage: int, replica_rem: float, style: Look, roles: Roles | None
) -> str:
    say = style.say
    replicas = "".join(_replica(model, layout, mesh, stage, dp, say, roles) for dp in _shown_replicas(mesh, roles))
    name = escape(say("Stage {stage}", stage=stage) if mesh.pp > 1 else say("One stage"))
    return (
        f'<section class="ss-stage" aria-label="{name}" style="--stage:{style.stage(stage, mesh.pp)}">'
        f"<header>{name}</header>{_row(replicas, replica_rem)}</section>"
    )


def _replica(model: ModelSpec, layout: LayoutSpec, mesh: Mesh, stage: int, dp: int, say: Words, roles: Roles | None) -> str:
    label = say("replica {replica}", replica=dp)
    if mesh.size > MOST_CELLS:
        label = _alike(layout.zero, say).format(replica=dp, count=mesh.dp)
    name = f"<header>{escape(label)}</header>" if mesh.dp > 1 else ""
    slices, parts = _shown_slices(mesh, roles), _shown_parts(mesh, roles)
    places = [Coordinate({"pp": stage, "dp": dp, "cp": cp, "tp": tp}) for cp in parts for tp in slices]
    cells = "".join(_cell(model, layout, mesh, at, say, roles) for at in places)
    if len(slices) < mesh.tp:
        cells += f"<p>{escape(say('and {count} more slices', count=mesh.tp - len(slices)))}</p>"
    return f'<div class="ss-replica">{name}{_row(cells, _CELL_REM)}</div>'


def _alike(zero: int, say: Words) -> str:
    """What replicas have in common, with {replica} and {count}, where one is drawn for all."""
    if zero == 0:
        return say("replica {replica} of {count}, which hold the same")
    if zero < 3:
        return say("replica {replica} of {count}, which hold the same parameters")
    return say("replica {replica} of {count}, each with a shard of the same layers")


def _shown_stages(mesh: Mesh, roles: Roles | None) -> tuple[list[int], list[int]]:
    """All stages. If there are very many, the first and the last ones, and that of the chosen rank."""
    if mesh.pp <= MOST_STAGES:
        return list(range(mesh.pp)), []
    half = MOST_STAGES // 2
    last = list(range(mesh.pp - half, mesh.pp))
    chosen = _chosen(mesh, roles).pp
    return [*range(half), *([chosen] if half <= chosen < mesh.pp - half else [])], last


def _shown_replicas(mesh: Mesh, roles: Roles | None) -> list[int]:
    """All replicas. If there are very many, that of the chosen rank or the first."""
    return list(range(mesh.dp)) if mesh.size <= MOST_CELLS else [_chosen(mesh, roles).dp]


def _shown_slices(mesh: Mesh, roles: Roles | None) -> list[int]:
    return list(range(mesh.tp)) if mesh.pp * mesh.tp <= MOST_CELLS else [_chosen(mesh, roles).tp]


def _shown_parts(mesh: Mesh, roles: Roles | None) -> list[int]:
    """The ranks that share a sequence. If there are very many, that of the chosen rank or the first."""
    return list(range(mesh.cp)) if mesh.pp * mesh.tp * mesh.cp <= MOST_CELLS else [_chosen(mesh, roles).cp]


def _chosen(mesh: Mesh, roles: Roles | None) -> Coordinate:
    return mesh.coordinate(roles.chosen if roles else 0)


def _cell(model: ModelSpec, layout: LayoutSpec, mesh: Mesh, at: Coordinate, say: Words, roles: Roles | None) -> str:
    rank, ends = mesh.rank(at), ends_of(layout, at.pp, say)
    held = [layers_of(model, layout, at.pp, say), *slice_of(model, mesh.tp, at.tp, say)]
    if mesh.cp > 1:
        held.append(say("tokens: part {part} of {cp}", part=at.cp, cp=mesh.cp))
    if layout.zero:
        if layout.zero_replicas > 1:
            group, shard = divmod(at.dp * mesh.cp + at.cp, layout.shards)
            numbers = {"zero": layout.zero, "group": group, "shard": shard, "shards": layout.shards}
            held.append(say("ZeRO {zero} in group {group}: shard {shard} of {shards}", **numbers))
        else:
            held.append(say("ZeRO {zero} over {replicas} replicas", zero=layout.zero, replicas=mesh.replicas))
    role: Role = roles[rank] if roles else "none"
    title = escape(
        say(
            "rank {rank}: stage {stage}, replica {replica}, slice {slice}; {held}",
            rank=rank,
            stage=at.pp,
            replica=at.dp,
            slice=at.tp,
            held=say(", ").join([*ends, *held]),
        )
    )
    chips = f"<em>{escape(role_name(role, say))}</em>" if role != "none" else ""
    chips += "".join(f"<i>{escape(end)}</i>" for end in ends)
    lines = "".join(f"<span>{escape(line)}</span>" for line in held)
    pale = ' data-pale=""' if roles and role == "none" else ""
    return (
        f'<button type="button" class="ss-rank" title="{title}" data-rank="{rank}" data-role="{role}"{pale} '
        f'aria-pressed="{str(role == "self").lower()}"><span class="ss-head"><b>{rank}</b>{chips}</span>{lines}</button>'
    )
