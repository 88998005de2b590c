"""Point at something in a chart that is already made: only a small data set changes, so the browser keeps all else, zoom too."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pandas as pd
from streamlit.dataframe_util import convert_anything_to_arrow_bytes

from pages.charts.drawing import Drawing


def pointed(drawing: Drawing, marks: Mapping[str, Sequence[Mapping[str, Any]]]) -> Drawing:
    """The same chart with rows put into the data sets that `finish` left empty, by name. No rows: nothing is pointed at."""
    datasets = dict(drawing.spec["datasets"])
    for name, rows in marks.items():
        if rows and name in datasets:
            datasets[name] = convert_anything_to_arrow_bytes(pd.DataFrame(list(rows)))
    return replace(drawing, spec={**drawing.spec, "datasets": datasets})
