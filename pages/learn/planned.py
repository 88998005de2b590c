"""What the planner says of a lesson's example: the fastest layout, and why the checklist's is slower."""

from __future__ import annotations

import streamlit as st

from engine.planner.advice import Try
from engine.planner.explain import why
from engine.planner.search import Plan
from engine.spec import LayoutSpec, RequestError
from pages.charts import names
from pages.charts.units import significant
from pages.charts.words import Words
from pages.learn.lesson_state import LessonState
from pages.learn.search_summary import SearchSummary, summarize_search
from pages.shared import navigation
from pages.shared.subprocesses import run_in_worker

Example = tuple[str, int, str, int]  # model, number of devices, device, sequences of a step


def draw(state: LessonState, example: Example, advised: Try | None, at_once: bool) -> None:
    """The planner's answer, `at_once` or on a button: a search takes a second or more."""
    say = state.say
    state.heading(say("What the planner says"))
    if not at_once and st.session_state.get(state.key("weighed")) != example:
        st.button(
            say("Compare with all layouts"),
            icon=":material/balance:",
            key=state.key("weigh"),
            on_click=state.put,
            args=("weighed", example),
        )
        return
    try:
        with st.spinner(say("Comparing all layouts of {count} devices", count=f"{example[1]:,}")):
            found = summary(*example, advised.spec.layout if advised else LayoutSpec(dp=example[1]))
    except RequestError as error:
        st.warning(say("There is nothing to compare: {reason}.", reason=say.sentence(error.sentence)))
        return
    _tell(state, found, advised)
    model, count, device, batch = example
    asked = {"model": model, "device": device, "ranks": str(count), "batch": str(batch)}
    navigation.link("plan", say("Open this example in Plan"), "grid_view", asked)


@st.cache_data(max_entries=64, show_spinner=False)
def summary(model: str, count: int, device: str, batch: int, about: LayoutSpec) -> SearchSummary:
    """Raises `RequestError` if there is no layout."""
    return run_in_worker(summarize_search, model, count, device, batch, about)


def _tell(state: LessonState, found: SearchSummary, advised: Try | None) -> None:
    say = state.say
    if not found.fit:
        state.text(say("Of {all} layouts none fits.", all=f"{found.all:,}"))
        return
    best = described(found.plan, 0, say)
    state.text(
        say(
            "Of {all} layouts {fit} fit. The planner expects the fastest to be **{best}**: {seconds} s a step.",
            all=f"{found.all:,}",
            fit=f"{found.fit:,}",
            best=best,
            seconds=significant(float(found.plan.layouts["step_s"].iloc[0])),
        )
    )
    if found.plan.layouts["zero"].iloc[0] == 3:
        state.text(overlap_caveat(say))
    if advised is None:
        return
    if len(found.plan.layouts) == 1:
        state.text(say("That is the checklist’s own answer."))
        return
    state.text(say("Why it is faster than the checklist’s {layout}:", layout=described(found.plan, 1, say)))
    named = {"first": say("The planner’s layout"), "second": say("the checklist’s")}
    lines = [
        say.described(reason.text).format(**(reason.values | (named if "first" in reason.values else {})))
        for reason in why(found.plan, 0, 1)
    ]
    state.text("\n".join(f"- {line}" for line in lines))
    state.text(
        say(
            "A checklist has one entry for each technique. The planner also combines them, and tries every size of a "
            "microbatch, every schedule and every number of chunks."
        )
    )


def overlap_caveat(say: Words) -> str:
    """What a predicted time of ZeRO 3 takes for granted. docs/prediction.md has the measurement."""
    return say(
        "The time of ZeRO 3 is predicted with full overlap of its gathers. An implementation may reach less: DeepSpeed’s of 2021 "
        "took twice as long."
    )


def described(plan: Plan, row: int, say: Words) -> str:
    """ "dp8.tp4.pp2, interleaved × 10, ZeRO 2, recompute of norms": a layout and its other settings."""
    r = plan.layouts.iloc[row]
    parts = [str(r["layout"])]
    if r["pp"] > 1:
        parts.append(names.schedule(str(r["schedule"]), say) + (f" × {r['chunks']}" if r["chunks"] > 1 else ""))
    parts.append(names.microbatches(int(r["microbatches"]), int(r["microbatch_size"]), say))
    parts += [f"ZeRO {r['zero']}"] if r["zero"] else []
    parts += [say("sequence parallel")] if r["sequence_parallel"] else []
    if r["recompute"] != "none":
        what = names.recompute(str(r["recompute"]), int(r["recompute_layers"]), 1, say)
        parts.append(say("recompute {what}", what=what))
    return " · ".join(parts)
