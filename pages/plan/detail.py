"""One layout of a plan: the parts of its step time, the comparison with another layout, and its links and files."""

from __future__ import annotations

from collections.abc import Mapping

import streamlit as st

from engine.export import ENDINGS, FRAMEWORKS, NAMES, Framework, settings
from engine.planner.explain import why
from engine.planner.reserve import reserve_terms
from engine.spec import RunSpec
from pages.charts import plan as charts
from pages.charts.drawing import Drawing
from pages.charts.look import View, look
from pages.charts.units import in_bytes, percent
from pages.charts.words import Words
from pages.plan import dry_run, names
from pages.plan.found import Found
from pages.shared import drawing
from pages.shared.frame import say, view


def draw(found: Found, row: int) -> None:
    words = say()
    other = _rival(found, row)
    _tell_baseline(found, words)
    with st.grid(columns=2, min_column_width=drawing.CHART_PX, gap="medium") as grid:
        with grid.cell():
            drawing.show(_parts(found, row, other, view()), "plan-parts")
        with grid.cell():
            if other is not None:
                _why(found, row, other, words)
    with st.container(horizontal=True, gap="small", vertical_alignment="center", key="plan-onward"):
        for framework in FRAMEWORKS:
            _settings(found.spec(row), framework, words)
    if found.plan.reserve is None:
        _kept_free(found, row, words)
    dry_run.draw(found, row)


def _kept_free(found: Found, row: int, words: Words) -> None:
    """The terms of the reserve."""
    r = found.layout(row)
    degrees = int(r["dp"]) * int(r["cp"]), int(r["tp"]), int(r["pp"])
    model = found.plan.model
    copies = model.key_copies(int(r["tp"]))
    terms = reserve_terms(
        found.device, *degrees, model.parts.tied, int(r["memory_bytes"]), copies, int(r["cp"]), int(r["zero_replicas"])
    )
    if not terms:
        return
    with st.expander(words("{size} that tensors leave free", size=in_bytes(sum(term.bytes for term in terms)))):
        st.markdown(
            "\n".join(f"- {words('{what}: {size}', what=words.sentence(term.name), size=in_bytes(term.bytes))}" for term in terms)
        )
        st.caption(
            words(
                "These are assumptions, the same for all GPUs; engine/devices.py has their sources. A device of your own has "
                "fields for them, and the reserve can be one number."
            )
        )


def _rival(found: Found, row: int) -> int | None:
    """The layout to compare with: the best; for the best the baseline, or else the second."""
    if row:
        return 0
    if found.baseline:
        return found.baseline
    return 1 if found.count > 1 else None


def _tell_baseline(found: Found, words: Words) -> None:
    """A sentence on what most people try first."""
    if found.baseline is None:
        st.caption(words("ZeRO 3 over all devices, the usual first try, is not possible with this batch and number of devices."))
        return
    r, best = found.layout(found.baseline), found.layout(0)
    size, step = in_bytes(int(r["memory_bytes"])), charts.seconds(float(r["step_s"]), words)
    values = {"name": names.brief(found, found.baseline, words), "size": size, "time": step}
    if found.baseline == 0:
        st.caption(words("The usual first try, ZeRO 3 over all devices, is the best."))
    elif found.baseline >= found.feasible:
        st.caption(words("The usual first try, ZeRO 3 over all devices ({name}), does not fit: it needs {size}.", **values))
    else:
        values["percent"] = percent(float(r["step_s"] / best["step_s"]) - 1)
        st.caption(
            words(
                "The usual first try, ZeRO 3 over all devices ({name}), takes {size} and {time} a step: {percent} longer than "
                "the best.",
                **values,
            )
        )


def _parts(found: Found, row: int, other: int | None, view: View) -> Drawing:
    rows = list(dict.fromkeys(r for r in (row, other, found.baseline) if r is not None))
    spent = {names.brief(found, r, say()): {part: max(0.0, taken) for part, taken in found.parts(r).items()} for r in rows}
    return _drawn(spent, view)


@st.cache_data(max_entries=64, show_spinner=False)
def _drawn(spent: Mapping[str, Mapping[str, float]], view: View) -> Drawing:
    return drawing.packed(charts.step_parts(spent, look(view)))


def _why(found: Found, row: int, other: int, words: Words) -> None:
    faster, slower = sorted((row, other), key=lambda r: float(found.layout(r)["step_s"]))
    title = words(
        "What {first} saves against {second}", first=names.brief(found, faster, words), second=names.brief(found, slower, words)
    )
    drawing.heading(words("Why one layout is faster"), title)
    called = {"first": names.brief(found, faster, words), "second": names.brief(found, slower, words)}
    reasons = why(found.plan, found.at(faster), found.at(slower))
    lines = [words(reason.text, **(reason.values | (called if "first" in reason.values else {}))) for reason in reasons]
    st.markdown("\n".join(f"- {line}" for line in lines))
    st.caption(
        words(
            "Number {place}: {levers}. Number {other}: {others}.",
            place=row + 1,
            levers=names.levers(found, row, words),
            other=other + 1,
            others=names.levers(found, other, words),
        )
    )


def _settings(spec: RunSpec, framework: Framework, words: Words) -> None:
    label = words("Settings for {framework}", framework=NAMES[framework])
    st.download_button(
        words("Model as config.json") if framework == "huggingface" else label,
        data=lambda: settings(spec, framework).encode(),
        file_name=f"shardscope-{framework}.{ENDINGS[framework]}",
        mime="text/plain",
        key=f"plan/export/{framework}",
        icon=":material/download:",
        on_click="ignore",
    )
