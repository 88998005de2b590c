"""A dry run of a plan's layout (the worker on fake tensors), with its numbers beside the predicted ones."""

from __future__ import annotations

import time

import pandas as pd
import streamlit as st

from engine.launch.dry_run.service import DryRunService, DryRunState
from engine.spec import RequestError, RunSpec
from engine.tables import CATEGORIES
from pages.charts.names import categories
from pages.charts.units import in_bytes
from pages.charts.words import Words
from pages.plan.found import Found
from pages.shared import drawing
from pages.shared.frame import inert, labelled, say
from pages.shared.predicted import peaks

DRY = "dry"  # the link's parameter: the id of a dry run
_REFUSED, _WHICH = "plan/dry-refused", "plan/dry-which"
_EVERY_S = 1.0
_PASSES_A_SECOND = 20  # through a layer of any size: 576 of them took 20 s on an idle core and 48 s on a busy one
_KNOWN = 0.05  # share of all actions after which the remaining time is estimated
_GIB = 2**30


@st.cache_resource(show_spinner=False, on_release=lambda service: service.close())
def dry_runs() -> DryRunService:
    """The dry-run service of all sessions of a server."""
    return DryRunService()


def draw(plan: Found, row: int) -> None:
    words, spec = say(), plan.spec(row)
    fullest = int(plan.layout(row)["fullest_stage"])
    with st.container(border=True, key="plan-dry"):
        drawing.heading(words("Dry run"), words("Simulate single ranks with fake tensors"))
        found = dry_runs().watch(st.query_params.get(DRY, ""))
        if found is not None and found.phase == "running":
            _watch(found.id, spec)
        else:
            _start_bar(spec, fullest, words)
            if found is not None:
                _ended(found, spec, words)


def _start_bar(spec: RunSpec, fullest: int, words: Words) -> None:
    layout = spec.layout
    ranks = {
        "fullest": words("stage {stage}, the fullest", stage=fullest),
        "all": words.plural("its {count} stage", "all {count} stages", layout.pp),
    }
    with st.container(horizontal=True, vertical_alignment="bottom", gap="small"):
        which = "fullest"
        if layout.pp > 1:  # with one stage there is nothing to choose
            which = st.selectbox(
                words("Which stages"), list(ranks), key=labelled(_WHICH), format_func=ranks.__getitem__, width=240
            )
        rank = layout.mesh.rank({"pp": fullest}) if which == "fullest" else None
        st.button(words("Start the dry run"), icon=":material/play_arrow:", on_click=_start, args=(spec, rank))
    st.caption(
        words(
            "It runs every action of one rank of a stage on this machine, without a GPU and without the memory, and counts every "
            "byte as a run would. A rank of stage {stage} goes {count} times through a layer, which takes about {seconds} s. It "
            "ends when you leave the page.",
            stage=fullest,
            count=f"{(passes := passes_of(spec, fullest)):,}",
            seconds=f"{max(3, passes / _PASSES_A_SECOND):,.0f}",
        )
    )
    if refused := st.session_state.pop(_REFUSED, None):
        st.warning(words("{sentence}.", sentence=inert(words.sentence(refused))), icon=":material/hourglass_top:")


def passes_of(spec: RunSpec, stage: int) -> int:
    """Passes of a rank of a stage through a layer in a step, forward and backward. A dry run's time is proportional to them."""
    return 2 * spec.workload.microbatches * spec.layout.stage_layers(spec.model.layers)[stage]


def _start(spec: RunSpec, rank: int | None) -> None:
    """Start the dry run. A callback."""
    try:
        st.query_params[DRY] = dry_runs().start(spec, rank)
    except RequestError as error:
        st.session_state[_REFUSED] = error.sentence


@st.fragment(run_every=_EVERY_S)
def _watch(id: str, spec: RunSpec) -> None:
    """The progress of a dry run. The fragment watches the run. When the reader leaves the page, the run ends."""
    words, found = say(), dry_runs().watch(id)
    if found is None or found.phase != "running":
        st.rerun()
    st.progress(found.actions / max(1, found.of_actions), text=progress_text(found, spec, time.monotonic() - found.began, words))
    st.button(words("Cancel"), icon=":material/stop:", on_click=dry_runs().cancel, args=(id,))


def progress_text(found: DryRunState, spec: RunSpec, passed: float, words: Words) -> str:
    """The progress in a line: "1 of 8 stages · 2,431 of 13,560 actions · 75 s, about 340 s left"."""
    said = []
    if found.spec != spec:
        said.append(words("Of another layout, {layout}", layout=found.spec.layout.code))
    if found.of == 1:
        said.append(words("Rank {rank}", rank=f"{found.rank or 0:,}"))
    else:
        said.append(words("{done} of {of} stages", done=found.done, of=found.of))
    if not found.actions:
        return " · ".join([*said, words("loading torch, {seconds} s", seconds=f"{passed:.0f}")])
    actions = words("{done} of {of} actions", done=f"{found.actions:,}", of=f"{found.of_actions:,}")
    share = found.actions / found.of_actions
    if share < _KNOWN:
        time_ = words("{seconds} s", seconds=f"{passed:.0f}")
    else:
        left = passed * (1 - share) / share
        time_ = words("{seconds} s, about {left} s left", seconds=f"{passed:.0f}", left=f"{left:.0f}")
    return " · ".join([*said, actions, time_])


def _ended(found: DryRunState, spec: RunSpec, words: Words) -> None:
    if found.phase == "cancelled":
        st.info(words("The dry run was cancelled, or the page was closed."), icon=":material/stop:")
    elif found.phase == "failed":
        reason = inert(words.sentence(found.message))
        st.error(words("The dry run failed: {sentence}.", sentence=reason.removesuffix(".")), icon=":material/error:")
        if found.traceback:
            with st.expander(words("Traceback of this rank")):
                st.code(found.traceback, language="text")
    elif found.spec != spec:
        st.caption(words("The last dry run was of another layout, {layout}.", layout=found.spec.layout.code))
    elif found.peaks is not None:
        _beside(found, words)


def _beside(found: DryRunState, words: Words) -> None:
    """Dry run and formula by stage, with the signed error."""
    rows = compared(found)
    whole = rows[rows["category"] == "total"]
    worst = whole.iloc[int(whole["error"].abs().to_numpy().argmax())]
    drawing.heading(
        words("Dry run of {seconds} s", seconds=f"{found.seconds:.1f}"),
        words(
            "Stage {stage} peaks at {ours} in the dry run and {theirs} by formula: {error}",
            stage=int(worst["stage"]),
            ours=in_bytes(int(worst["dry_run"])),
            theirs=in_bytes(int(worst["formula"])),
            error=signed(float(worst["error"])),
        ),
    )
    named = categories(words) | {"total": words("total")}
    number = st.column_config.NumberColumn
    shown = rows.assign(
        category=rows["category"].map(named),
        dry_run=rows["dry_run"] / _GIB,
        formula=rows["formula"] / _GIB,
        error=[signed(value) if value == value else "–" for value in rows["error"]],
    )
    st.dataframe(
        shown,
        hide_index=True,
        width="stretch",
        alt=words("Dry run"),
        key="plan-dry-table",
        column_config={
            "stage": number(words("stage")),
            "category": words("category"),
            "dry_run": number(words("dry run (GiB)"), format="%.3f"),
            "formula": number(words("formula (GiB)"), format="%.3f"),
            "error": words("error of the formula"),
        },
    )


def compared(found: DryRunState) -> pd.DataFrame:
    """stage, category, dry_run, formula (bytes), error: the signed relative error of the formula. Totals come first."""
    assert found.peaks is not None
    predicted = {peak.stage: peak for peak in peaks(found.spec).peaks}
    rows = []
    for stage, peak in found.peaks.groupby("pp"):
        held = peak.groupby("category")["bytes"].sum()
        by_formula = predicted[int(str(stage))].bytes
        pairs = {"total": (int(held.sum()), sum(by_formula.values()))}
        pairs |= {c: (int(held.get(c, 0)), by_formula.get(c, 0)) for c in CATEGORIES}
        for category, (ours, formula) in pairs.items():
            error = formula / ours - 1 if ours else (0.0 if not formula else float("nan"))
            rows.append({"stage": stage, "category": category, "dry_run": ours, "formula": formula, "error": error})
    found_rows = pd.DataFrame(rows)
    return pd.concat([found_rows[found_rows["category"] == "total"], found_rows[found_rows["category"] != "total"]])


def signed(error: float) -> str:
    """ "+0.12%", "−3.10%", "0.00%" for smaller ones."""
    text = f"{100 * abs(error):.2f}%"
    return text if float(text[:-1]) == 0 else f"{'+' if error > 0 else '−'}{text}"
