"""Ranks by stage, where there are too many for a bar each: one rank of a stage, or of very many stages the fullest of a few."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pandas as pd

from engine.topology import AXES
from pages.charts.words import Words

MOST_STAGES = 128  # each with a bar of its own


class StageRows(NamedTuple):
    """`rows` of the ranks that stand for stages; of `together` neighbouring stages one. `last`: the last stage of all."""

    rows: pd.DataFrame
    together: int
    last: int

    def called(self, stage: int, say: Words) -> str:
        """What a bar stands for, told by the stage that it shows: "stage 3", "stages 0–7"."""
        if self.together == 1:
            return say("stage {stage}", stage=stage)
        first = stage // self.together * self.together
        return say("stages {first}–{last}", first=first, last=min(first + self.together - 1, self.last))


def by_stage(peaks: pd.DataFrame) -> StageRows:
    """`peaks`: a table "memory_peak", perhaps of several sources."""
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
