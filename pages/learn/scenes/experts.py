"""Tokens on their way to the ranks that hold their experts, and back."""

from __future__ import annotations

from pages.charts.look import Look
from pages.learn.matrices import owners
from pages.learn.routing import EXPERTS, RANKS, TOKENS, Routing, expert_rank, token_rank
from pages.learn.scene import WIDTH, Scene, box, text

_HOME, _EXPERTS = 34, 108  # where the tokens of a rank are, and the top of its experts
_SIZE, _DEEP = 22, 6  # of a token; tokens in a column under an expert
_EACH = WIDTH / EXPERTS
_START, _ROUTE, _THERE, _COMPUTE, _BACK = range(5)


def scene(routing: Routing, style: Look) -> Scene:
    """One shape for each pair of a token and one of its experts."""
    say, colours, wide = style.say, owners(style), WIDTH / RANKS
    made = Scene(say("Tokens go to the ranks of their experts and come back."), _EXPERTS + 36 + 8 * _SIZE)
    for rank in range(RANKS):
        made.fixed += text((rank + 0.5) * wide, 16, say("rank {rank}", rank=rank), bold=True)
        made.fixed += box(rank * wide + 3, _HOME - 8, wide - 6, 46, "none", frame=style.grey)
        made.fixed += box(rank * wide + 3, _EXPERTS - 4, wide - 6, made.height - _EXPERTS + 3, "none", frame=style.grey)
    for expert in range(EXPERTS):
        x = expert * _EACH
        made.fixed += box(x + 6, _EXPERTS, _EACH - 12, made.height - _EXPERTS - 4, style.faint)
        made.fixed += text(x + _EACH / 2, _EXPERTS + 19, say("expert {expert}", expert=expert), size=13)
    filled = [0] * EXPERTS
    for token, experts in enumerate(routing.chosen):
        rank, each = token_rank(token), TOKENS // RANKS
        x = rank * wide + (wide - each * (_SIZE + 12)) / 2 + (token % each) * (_SIZE + 12)
        for order, expert in enumerate(experts):
            square = box(0, 0, _SIZE - 2, _SIZE - 2, colours[rank], corner=3)
            square += f'<g fill="{style.on_colour}">{text(_SIZE / 2 - 1, 15, str(token), size=12)}</g>'
            thing = made.add(square).put(_START, x + order * 8, _HOME + order * 8)
            if (token, expert) in routing.dropped:
                thing.put(_ROUTE, x + order * 8, _HOME + order * 8, 0.25)
                continue
            column, row = divmod(filled[expert], _DEEP)
            filled[expert] += 1
            thing.put(_THERE, expert * _EACH + 14 + column * (_SIZE + 2), _EXPERTS + 28 + row * (_SIZE + 2))
            thing.put(_BACK, x + order * 8, _HOME + order * 8)
    made.said = _sentences(routing, style)
    made.still = _COMPUTE
    return made


def _sentences(routing: Routing, style: Look) -> list[str]:
    say = style.say
    loads = [routing.load(expert) for expert in range(EXPERTS)]
    ranks = [sum(routing.sent(other, rank) for other in range(RANKS)) for rank in range(RANKS)]
    crossing = sum(token_rank(token) != expert_rank(expert) for token, expert in routing.kept)
    routed = say("The router of each rank chooses experts for its tokens.")
    if routing.dropped:
        lost = say.plural(
            "{count} choice finds no room, and is dropped.",
            "{count} choices find no room, and are dropped.",
            len(routing.dropped),
        )
        routed = say.together(routed, lost)
    return [
        say("Each rank has 6 tokens. A token that chooses two experts is drawn twice."),
        routed,
        say.plural("All-to-all: {count} row goes to another rank.", "All-to-all: {count} rows go to another rank.", crossing),
        say(
            "The experts compute {loads} rows, and so the ranks {ranks}. All wait for the fullest rank, which has {times} times "
            "an even share.",
            loads=", ".join(map(str, loads)),
            ranks=", ".join(map(str, ranks)),
            times=f"{routing.unevenness:.2f}",
        ),
        say("A second all-to-all brings the rows back, and each token adds up the results of its experts."),
    ]
