"""The functions that worker processes run, and no others. Add a line for a new one.

Their arguments and results must be annotated, with types that `pages.shared.codec` knows.
"""

from __future__ import annotations

JOBS = (
    "pages.learn.search_summary.summarize_search",
    "pages.plan.cases.cases",
    "pages.plan.cells.cell",
    "pages.plan.found.as_zip",
    "pages.plan.found.found",
    "pages.plan.found.served_by",
)
