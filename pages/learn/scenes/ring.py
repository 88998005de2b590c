"""Keys and values on their way round a ring of ranks, and the blocks of scores that are computed meanwhile."""

from __future__ import annotations

from pages.charts.look import Look
from pages.learn.matrices import owners
from pages.learn.ring import Cut, blocks, chunks, source, work
from pages.learn.scene import WIDTH, Scene, box, text

_TOP, _LEFT, _SIDE = 40, 34, 200  # of the square of scores
_RANKS, _ROW = _LEFT + _SIDE + 30, 44  # where the list of ranks begins, and the height of a rank in it


def scene(cp: int, cut: Cut, style: Look) -> Scene:
    """A step for each pass round the ring."""
    say, colours, count = style.say, owners(style), 2 * cp
    cell = _SIDE / count
    made = Scene(say("Keys and values go round the ring; each rank computes a part of the scores in each step."), 0)
    holder = {chunk: rank for rank in range(cp) for chunk in chunks(rank, cp, cut)}
    made.fixed = text(_LEFT + _SIDE / 2, 14, say("keys of chunk"), size=13) + text(_RANKS, 14, say("keys it has"), "start", 13)
    for chunk in range(count):
        made.fixed += text(_LEFT + (chunk + 0.5) * cell, _TOP - 6, str(chunk), size=12)
        made.fixed += text(_LEFT - 8, _TOP + (chunk + 0.5) * cell + 4, str(chunk), "end", 12)
        made.fixed += box(2, _TOP + chunk * cell + 1, 6, cell - 2, colours[holder[chunk]], corner=2)
        for key in range(chunk + 1):
            made.fixed += box(_LEFT + key * cell + 1, _TOP + chunk * cell + 1, cell - 2, cell - 2, style.faint, corner=2)
    for rank in range(cp):
        y = _TOP + rank * _ROW
        made.fixed += box(_RANKS, y, WIDTH - _RANKS - 2, _ROW - 8, "none", frame=colours[rank])
        named = say("rank {rank}", rank=rank)
        made.fixed += text(WIDTH - 10, y + 15, named, "end", 13, bold=True)
        held = ", ".join(map(str, chunks(rank, cp, cut)))
        made.fixed += text(WIDTH - 10, y + 31, say("queries {chunks}", chunks=held), "end", 11)
    for rank in range(cp):
        _keys(made, rank, cp, cut, style)
        for step in range(cp):
            for query, key in blocks(rank, step, cp, cut):
                square = box(1, 1, cell - 2, cell - 2, colours[rank], corner=2)
                made.add(square).put(step, _LEFT + key * cell, _TOP + query * cell)
    made.said = [_sentence(step, cp, cut, style) for step in range(cp)]
    made.still = cp - 1
    made.height = _TOP + max(_SIDE, cp * _ROW) + 6
    return made


def _keys(made: Scene, rank: int, cp: int, cut: Cut, style: Look) -> None:
    """The keys and values of a rank, which are with another rank in each step."""
    held = ", ".join(map(str, chunks(rank, cp, cut)))
    shape = box(0, 0, 58, 22, owners(style)[rank]) + f'<g fill="{style.on_colour}">{text(29, 16, held, size=13, bold=True)}</g>'
    thing = made.add(shape)
    for step in range(cp):
        at = next(other for other in range(cp) if source(other, step, cp) == rank)
        thing.put(step, _RANKS + 8, _TOP + at * _ROW + 7)


def _sentence(step: int, cp: int, cut: Cut, style: Look) -> str:
    found = [work(rank, step, cp, cut) for rank in range(cp)]
    listed = ", ".join(f"{blocks:g}" for blocks in found)
    values = {"step": step + 1, "blocks": listed, "most": f"{max(found):g}"}
    if len(set(found)) == 1:
        return style.say("Pass {step}: every rank computes {most} blocks of scores, and passes its keys on meanwhile.", **values)
    return style.say("Pass {step}: the ranks compute {blocks} blocks of scores. All wait for the one with {most}.", **values)
