"""Which microbatches of a long step memory is worked out from.

A step may have very many passes: with 1,024 stages and 65,536 microbatches, hundreds of millions. Most bring nothing new.
"""

from __future__ import annotations

from typing import NamedTuple

from engine.schedule import Kind, entries
from engine.schedule.orders import enough_microbatches
from engine.spec import LayoutSpec, RequestError, RunSpec, sentence

# Passes and messages of a schedule: up to so many, all microbatches are gone through. Of more, those that bring something new. If
# more than the most are left, memory is not worked out.
ALL_OF, MOST = 20_000, 1_000_000
_HELD_ALIKE = 4  # microbatches of a schedule that holds all of them alike


class Shortened(NamedTuple):
    """`microbatches` of a step are gone through, and `fewer` are left out.

    `alike`: the first forward and the last backward but one stand for those that are left out. Otherwise these bring nothing new.
    """

    microbatches: int
    fewer: int = 0
    alike: bool = False

    def named(self, kind: Kind, microbatch: int, forwards_follow: bool) -> int:
        """A microbatch's number in the whole step. `forwards_follow`: whether the pass or a later one of its stage is an F."""
        if self.alike:
            left_out_before = microbatch > 0 if kind == "F" else microbatch == self.microbatches - 1
        else:  # between the first ones and the stage's last forward
            left_out_before = not forwards_follow
        return microbatch + self.fewer * left_out_before


def shortened(spec: RunSpec, all_of: int = ALL_OF, most: int = MOST) -> Shortened:
    """How the step is gone through. Raises `RequestError` where too much would be left to go through."""
    layout, m, facts = spec.layout, spec.workload.microbatches, spec.layout.facts
    if entries(layout, m) <= all_of:
        return Shortened(m)
    # What an encoder lends depends on each microbatch's own passes.
    if facts.plain and facts.memory_repeats_after is None and not spec.model.parts.encoder and m > _HELD_ALIKE:
        return Shortened(_HELD_ALIKE, m - _HELD_ALIKE, True)
    enough = m if entries(layout, m) <= most and not facts.plain else _enough(layout, m)
    if (count := entries(layout, enough)) > most and (not facts.plain or facts.memory_repeats_after is None):
        raise RequestError(
            sentence(
                "{schedule} with pp={pp}, chunks={chunks} and {microbatches} microbatches has {count} passes and "
                "messages, and memory is computed from at most {most}; reduce one of these",
                schedule=layout.schedule,
                pp=layout.pp,
                chunks=layout.chunks,
                microbatches=f"{enough:,}",
                count=f"{count:,}",
                most=f"{most:,}",
            )
        )
    return Shortened(enough, m - enough)


def _enough(layout: LayoutSpec, microbatches: int) -> int:
    """Microbatches after which memory repeats. Two more are gone through, so that it also repeats before a stage's last forward.

    None more where the schedule refuses that number, as it does where rounds have to stay whole.
    """
    enough = int(enough_microbatches(layout.schedule, layout.pp, microbatches))
    more = min(microbatches, enough + 2)
    return more if layout.facts.fits_microbatches(layout.pp, more) else min(microbatches, enough)
