"""The sweep of one lever of one column, as small charts side by side."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import pandas as pd
import streamlit as st

from engine.spec import RunSpec
from pages.charts import multiples
from pages.charts.drawing import Drawing
from pages.charts.look import View, look
from pages.compare import columns, names, sweep
from pages.compare.columns import Column
from pages.shared import drawing
from pages.shared.frame import inert, labelled, say, view
from pages.shared.predicted import with_ledgers_shown

BASE, LEVER = "of", "sweep"  # the link's parameters: which column, counted from 1, and which lever
_CHART_PX = 300  # the least width of a chart


def draw(there: Sequence[Column]) -> None:
    words = say()
    drawing.heading(words("From the formulas"), words("Parameter sweep"))
    titles = [columns.title(column, there, words) for column in there]
    with st.container(horizontal=True, vertical_alignment="bottom"):
        at = _kept_select(words("Layout"), [str(n) for n in range(1, len(there) + 1)], BASE, lambda n: titles[int(n) - 1])
        lever = _kept_select(words("Setting"), list(sweep.LEVERS), LEVER, names.levers(words).__getitem__)
    base = there[int(at) - 1].spec
    with st.spinner(words("Computing every value"), show_time=False):
        made = swept(base, lever)
    named = {code: names.value(lever, value, words) for code, value in made.tried.items()}
    if len(made.tried) == 1:
        [only] = named.values()
        st.info(
            words(
                "{value} is the only value of this setting that is compatible with the others; the reasons are below.", value=only
            ),
            icon=":material/lock:",
        )
    else:
        _charts(base, lever, named, made)
    if made.left_out:
        count = len(made.left_out)
        label = words.plural(
            "{count} value is not compatible with the other settings",
            "{count} values are not compatible with the other settings",
            count,
        )
        with st.expander(label, expanded=len(made.tried) == 1, type="compact", key=f"compare-left-out-{lever}"):
            for value, sentence in made.left_out:
                st.markdown(f"- **{names.value(lever, value, words)}**: {inert(words.sentence(sentence))}")


def _charts(base: RunSpec, lever: str, named: Mapping[str, str], made: sweep.Sweep) -> None:
    charts: list[tuple[str, Callable[..., Drawing], pd.DataFrame]] = [
        ("sweep-memory", multiples.sweep_memory, made.memory),
        ("sweep-traffic", multiples.sweep_traffic, made.figures),
        ("sweep-bubble", multiples.sweep_bubble, made.figures),
    ]
    words = say()
    st.html(multiples.legend(made.memory.loc[made.memory["bytes"] > 0, "category"].unique().tolist(), look(view())))
    with st.grid(columns=3, min_column_width=_CHART_PX, gap="medium") as grid:
        for key, make, rows in charts:
            with grid.cell():
                current = str(sweep.current_value(base, lever))
                drawing.show(_made(make, rows, names.levers(words)[lever], named, current, view()), key)


@st.cache_data(max_entries=96, show_spinner=False, hash_funcs={"builtins.function": lambda make: make.__name__})
def _made(
    make: Callable[..., Drawing], rows: pd.DataFrame, lever: str, named: Mapping[str, str], here: str, view: View
) -> Drawing:
    return drawing.packed(make(rows, lever, named, here, look(view)))


@st.cache_resource(max_entries=64, show_spinner=False)
def swept(base: RunSpec, lever: str) -> sweep.Sweep:
    return with_ledgers_shown(lambda: sweep.sweep(base, lever))


def _kept_select(label: str, options: list[str], parameter: str, name: Callable[[str], str]) -> str:
    """A select box whose value is in the link. The link wins; a change is written to it."""
    key = f"compare/{parameter}"
    linked = st.query_params.get(parameter, options[0])
    st.session_state[key] = linked if linked in options else options[0]

    def moved() -> None:
        picked = st.session_state[key]
        if picked == options[0]:
            st.query_params.pop(parameter, None)
        else:
            st.query_params[parameter] = picked

    picked: str = st.selectbox(label, options, format_func=name, key=labelled(key), on_change=moved, width=340)
    return picked
