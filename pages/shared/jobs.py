"""What may be asked of the processes beside the server: these functions and no others. A new one is given its line here.

Arguments and answer must be of types that `pages.shared.codec` knows, and annotated with them.
"""

from __future__ import annotations

JOBS = (
    "engine.predict.papers.figures.references",
    "pages.learn.weighing.weigh",
    "pages.plan.cells.cell",
    "pages.plan.found.as_zip",
    "pages.plan.found.found",
    "pages.plan.found.served_by",
)
