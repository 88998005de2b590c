"""The closed form of a pipeline's bubble, for pipelines that are too long to be simulated."""

from __future__ import annotations

from engine.spec import LayoutSpec, RequestError, sentence


def textbook_bubble(layout: LayoutSpec, microbatches: int) -> float:
    """`bubble_share` of a layout, 0 to 1. Raises `RequestError` if microbatches are too few to fill the pipeline."""
    needed = layout.facts.closed_from(layout.pp)
    if microbatches < needed:
        raise RequestError(
            sentence(
                "{schedule} with pp={pp} and {microbatches} microbatches is too long to simulate, and with fewer "
                "than {needed} its bubble has no closed form",
                schedule=layout.schedule,
                pp=layout.pp,
                microbatches=f"{microbatches:,}",
                needed=f"{needed:,}",
            )
        )
    return float(layout.facts.bubble_share(layout.pp, microbatches, layout.chunks))
