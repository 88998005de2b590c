"""Mark something in a chart that is already drawn. Only a small data set changes, so the browser keeps the zoom."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pandas as pd
from streamlit.dataframe_util import convert_anything_to_arrow_bytes

from pages.charts.drawing import Drawing


def pointed(drawing: Drawing, marks: Mapping[str, Sequence[Mapping[str, Any]]]) -> Drawing:
    """The chart with rows in the data sets that `finish` left empty. `marks`: name of the data set → rows to mark."""
    datasets = dict(drawing.spec["datasets"])
    for name, rows in marks.items():
        if rows and name in datasets:
            datasets[name] = convert_anything_to_arrow_bytes(pd.DataFrame(list(rows)))
    return replace(drawing, spec={**drawing.spec, "datasets": datasets})
