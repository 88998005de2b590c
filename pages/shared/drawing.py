"""Show a chart with its title, its explanation, its table, and buttons for files."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from html import escape
from typing import Any

import pyarrow as pa
import streamlit as st
from streamlit.dataframe_util import convert_anything_to_arrow_bytes

from pages.charts.drawing import Drawing
from pages.charts.names import columns, readable
from pages.charts.roles import CHOSEN
from pages.shared.frame import say
from pages.shared.subprocesses import run_module

_EXPORT_WIDTH = 960  # pixels

# For files. The first installed family is used: sans-serif with Chinese, with the page's Latin letters.
_FONTS = "Noto Sans CJK SC, Source Han Sans SC, Microsoft YaHei, PingFang SC, sans-serif"

CHART_PX = 520  # least width of a chart: two are side by side if each has that much


def packed(drawing: Drawing) -> Drawing:
    """The drawing with its data serialized for the browser, so that showing a cached chart takes no time."""
    spec: dict[str, Any] = {**drawing.spec}
    spec["datasets"] = {name: convert_anything_to_arrow_bytes(rows) for name, rows in spec["datasets"].items()}
    return replace(drawing, spec=spec)


def heading(subject: str, title: str) -> None:
    """The heading of a chart, or of another part among charts."""
    st.html(heading_html(subject, title))


def heading_html(subject: str, title: str) -> str:
    """The same as HTML, for parts that are HTML: each Streamlit element takes time."""
    return f'<div class="ss-title"><span>{escape(subject)}</span><h4>{escape(title)}</h4></div>'


def show(
    drawing: Drawing,
    key: str,
    *controls: Callable[[], object],
    note: str = "",
    on_rank: Callable[[int | None], None] | None = None,
    below: Callable[[], object] | None = None,
) -> None:
    """Show a chart.

    `key` is unique on the page. `controls` draw widgets at the right of the title. `note` is added to the explanation. `below`
    draws what is under the chart. If a rank is clicked in a chart with ranks, `on_rank` is called with it before the page is
    redrawn, and with None for a click outside of all marks.
    """
    with st.container(key=f"drawing-{key}", gap="xsmall"):
        heading(drawing.subject, drawing.title)
        for control in controls:  # style.css puts it at the right of the title
            control()
        reading = say().together(drawing.reading, drawing.moving, note)
        _chart(drawing, f"chart-{key}", reading, on_rank)
        st.caption(reading)
        with st.expander(say()("The numbers"), key=f"table-{key}", on_change="rerun", type="compact") as numbers:
            if numbers.open:  # closed: the table is not sent
                table = readable(drawing.table, say())
                st.dataframe(table, hide_index=True, width="stretch", column_config=columns(say()), alt=drawing.title)
                _files(drawing, key)
        if below:
            below()


def _chart(drawing: Drawing, key: str, reading: str, on_rank: Callable[[int | None], None] | None) -> None:
    selects = any(param["name"] == CHOSEN for param in drawing.spec.get("params", ()))
    if on_rank is None or not selects:
        st.vega_lite_chart(drawing.spec, width="stretch", key=key)
        return
    st.vega_lite_chart(
        drawing.spec,
        width="stretch",
        key=key,
        on_select=partial(_selected, key, on_rank),
        selection_mode=[CHOSEN],
    )


def _selected(key: str, on_rank: Callable[[int | None], None]) -> None:
    points = st.session_state[key]["selection"].get(CHOSEN) or []
    on_rank(int(next(iter(points[0].values()))) if points else None)  # a rank, or another number that can be chosen in the chart


# ---------------------------------------------------------------------------------------------------- files


def _files(drawing: Drawing, key: str) -> None:
    """Buttons that make a file when they are pressed."""
    with st.container(horizontal=True, gap="small"):
        for kind, mime, make in (
            ("CSV", "text/csv", as_csv),
            ("PNG", "image/png", as_png),
            ("SVG", "image/svg+xml", as_svg),
        ):
            st.download_button(
                say()("Save as {format}", format=kind),
                data=partial(make, drawing),
                file_name=f"shardscope-{key}.{kind.lower()}",
                mime=mime,
                key=f"{kind}-{key}",
                on_click="ignore",
                icon=":material/download:",
            )


def as_csv(drawing: Drawing) -> bytes:
    """The exact table with the columns' codes: for programs, the same in every language."""
    return drawing.table.to_csv(index=False).encode("utf-8")


def as_png(drawing: Drawing) -> bytes:
    return run_module("pages.shared.picture", "png", given=_spec_for_file(drawing))


def as_svg(drawing: Drawing) -> bytes:
    return run_module("pages.shared.picture", "svg", given=_spec_for_file(drawing))


def _spec_for_file(drawing: Drawing) -> bytes:
    """The spec for a file, as JSON: with its data, a fixed width, its title and its explanation."""
    spec: dict[str, Any] = json.loads(json.dumps({k: v for k, v in drawing.spec.items() if k != "datasets"}))
    spec["datasets"] = {
        name: rows if isinstance(rows, list) else pa.ipc.open_stream(rows).read_all().to_pylist()
        for name, rows in drawing.spec["datasets"].items()
    }
    text = spec["config"]["axis"]["labelColor"]
    spec["title"] = {"text": drawing.title, "subtitle": drawing.subject, "anchor": "start", "color": text, "subtitleColor": text}
    # On a page Streamlit sets the width. In a concatenated chart, each part has a width.
    for part in spec.get("vconcat", [spec]):
        part["width"] = _EXPORT_WIDTH
    spec["config"]["background"] = spec["usermeta"]["background"]
    spec["config"]["font"] = _FONTS
    if "vconcat" in spec:
        spec.pop("autosize")
    return json.dumps(spec).encode()
