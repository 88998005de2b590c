"""The bubble of a pipeline that is too long to be simulated, in closed form."""

from __future__ import annotations

from engine.spec import LayoutSpec, RequestError, sentence


def textbook_bubble(layout: LayoutSpec, microbatches: int) -> float:
    """`bubble_share` of a layout. Raises `RequestError` where it does not hold, as microbatches do not fill the pipeline."""
    needed = layout.facts.closed_from(layout.pp)
    if microbatches < needed:
        raise RequestError(
            sentence(
                "{schedule} with pp={pp} and {microbatches} microbatches is too long to be put in time, and with fewer than "
                "{needed} its bubble has no closed form",
                schedule=layout.schedule,
                pp=layout.pp,
                microbatches=f"{microbatches:,}",
                needed=f"{needed:,}",
            )
        )
    return float(layout.facts.bubble_share(layout.pp, microbatches, layout.chunks))
