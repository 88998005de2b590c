"""Show a chart with its title, how to read it, its table, and files of it to take away."""

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

# Of a file's text, the first that there is: a family that has Chinese without serifs, whose Latin letters are the page's own.
_FONTS = "Noto Sans CJK SC, Source Han Sans SC, Microsoft YaHei, PingFang SC, sans-serif"

CHART_PX = 520  # two charts stand side by side where each has that much


def packed(drawing: Drawing) -> Drawing:
    """The same, with the chart's data in the form in which it is sent, so that a cached chart costs nothing to show."""
    spec: dict[str, Any] = {**drawing.spec}
    spec["datasets"] = {name: convert_anything_to_arrow_bytes(rows) for name, rows in spec["datasets"].items()}
    return replace(drawing, spec=spec)


def heading(subject: str, title: str) -> None:
    """The heading of a chart, or of something that stands among charts."""
    st.html(heading_html(subject, title))


def heading_html(subject: str, title: str) -> str:
    """The same for what is HTML itself: each element of a page costs time of its own, and a heading need not be one."""
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

    `key` names it among all on the page; `controls` draw what stands at the right of its title; `note` is added to how it is
    read, and `below` draws what stands under it. `on_rank` is called, before the page is drawn anew, with the rank that was
    clicked in a chart that offers ranks, and with None for a click beside them.
    """
    with st.container(key=f"drawing-{key}", gap="xsmall"):
        heading(drawing.subject, drawing.title)
        for control in controls:  # which style.css puts at the right of it
            control()
        reading = " ".join(part for part in (drawing.reading, drawing.moving, note) if part)
        _chart(drawing, f"chart-{key}", reading, on_rank)
        st.caption(reading)
        with st.expander(say()("The numbers"), key=f"table-{key}", on_change="rerun", type="compact") as numbers:
            if numbers.open:  # otherwise nobody sees it, and it need not be sent
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
    on_rank(int(next(iter(points[0].values()))) if points else None)  # a rank, or whatever number the chart offers


# ---------------------------------------------------------------------------------------------------- files to take away


def _files(drawing: Drawing, key: str) -> None:
    """Buttons that make a file when they are pressed, and not before."""
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
    """The table, exact, with the columns' codes: for programs, and the same in every language."""
    return drawing.table.to_csv(index=False).encode("utf-8")


def as_png(drawing: Drawing) -> bytes:
    return run_module("pages.shared.picture", "png", given=_standing_alone(drawing))


def as_svg(drawing: Drawing) -> bytes:
    return run_module("pages.shared.picture", "svg", given=_standing_alone(drawing))


def _standing_alone(drawing: Drawing) -> bytes:
    """The spec with its data in it, a width of its own, its title and how to read it: what a slide needs."""
    spec: dict[str, Any] = json.loads(json.dumps({k: v for k, v in drawing.spec.items() if k != "datasets"}))
    spec["datasets"] = {
        name: rows if isinstance(rows, list) else pa.ipc.open_stream(rows).read_all().to_pylist()
        for name, rows in drawing.spec["datasets"].items()
    }
    text = spec["config"]["axis"]["labelColor"]
    spec["title"] = {"text": drawing.title, "subtitle": drawing.subject, "anchor": "start", "color": text, "subtitleColor": text}
    # Streamlit sets the width of what stands on a page; in a concatenated chart each part has its own.
    for part in spec.get("vconcat", [spec]):
        part["width"] = _EXPORT_WIDTH
    spec["config"]["background"] = spec["usermeta"]["background"]
    spec["config"]["font"] = _FONTS
    if "vconcat" in spec:
        spec.pop("autosize")
    return json.dumps(spec).encode()
