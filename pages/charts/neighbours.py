"""Rows by stage, where there are too many ranks for a bar each.

One rank stands for its stage. With very many stages, the one with the highest peak stands for a few neighbouring stages.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pandas as pd

from engine.topology import AXES
from pages.charts.words import Words

MOST_STAGES = 128  # that have a bar each


class StageRows(NamedTuple):
    """`rows` of one rank for each `together` neighbouring stages. `last` is the number of the last stage."""

    rows: pd.DataFrame
    together: int
    last: int

    def label(self, stage: int, say: Words) -> str:
        """The label of a bar, by the stage of its rank: "stage 3", "stages 0–7"."""
        if self.together == 1:
            return say("stage {stage}", stage=stage)
        first = stage // self.together * self.together
        return say("stages {first}–{last}", first=first, last=min(first + self.together - 1, self.last))


def by_stage(peaks: pd.DataFrame) -> StageRows:
    """`peaks`: a table "memory_peak", of one or several sources."""
    others = [axis for axis in AXES if axis != "pp"]
    rows = peaks[np.logical_and.reduce([peaks[axis] == 0 for axis in others])]
    last = int(rows["pp"].max())
    together = -(-(last + 1) // MOST_STAGES)
    if together > 1:
        totals = rows.groupby(["source", "rank", "pp"], as_index=False)["bytes"].sum()
        one = totals[totals["source"] == totals["source"].iloc[-1]]
        fullest = one.loc[one.groupby(one["pp"] // together)["bytes"].idxmax(), "rank"]
        rows = rows[rows["rank"].isin(fullest)]
    return StageRows(rows, together, last)
