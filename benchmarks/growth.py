"""How the CPU time of a step grows with ranks, with layers and with microbatches.

    python -m benchmarks.growth [--sweeps ranks layers microbatches] [--most 64] [--steps 8] [--chart docs/growth.svg]

The model is gpt-tiny with more or fewer layers. Of each sweep only one number changes:

    ranks          1 to 16 replicas (dp), 4 layers, 4 microbatches each. So the work grows with the ranks
    layers         2 to 32, on dp2, with 4 microbatches
    microbatches   1 to 64, on dp2, with 4 layers

`cpu_ms` is the CPU time of a step, of all ranks, and `wall_ms` the time from the common start to the end of the last rank. Both
are medians. `cpu_ms_each` is `cpu_ms` for each rank, layer or microbatch. Where it stays the same, the step grows as the work
does. Where it falls, what a step costs only once is shared. More ranks than cores take turns, so their wall time grows.

--chart draws the CPU time over each of the three, and what it would be in proportion to the work from the smallest step on.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

import altair as alt

from benchmarks.turns import EngineRank, Side
from engine.catalog import model
from engine.command.output import print_table
from engine.spec import LayoutSpec, RunSpec, WorkloadSpec
from pages.charts.look import LIGHT, config
from pages.shared.picture import picture

SWEEPS = {
    "ranks": (1, 2, 4, 8, 16),
    "layers": (2, 4, 8, 16, 32),
    "microbatches": (1, 2, 4, 8, 16, 32, 64),
}
WARM_UP = 2  # steps that are not timed


def spec_of(sweep: str, value: int) -> RunSpec:
    sizes = {"ranks": 2, "layers": 4, "microbatches": 4} | {sweep: value}
    layers = model("gpt-tiny").model_copy(update={"layers": sizes["layers"]})
    return RunSpec(
        model=layers,
        layout=LayoutSpec(dp=sizes["ranks"]),
        workload=WorkloadSpec(microbatches=sizes["microbatches"], microbatch_size=2),
    )


def row(sweep: str, value: int, steps: int) -> dict[str, Any]:
    with Side(spec_of(sweep, value), EngineRank) as side:
        side.run(WARM_UP)
        timed = side.run(steps)
    cpu, wall = (statistics.median(getattr(step, clock) for step in timed) / 1e6 for clock in ("cpu_ns", "wall_ns"))
    return {
        "sweep": sweep,
        "value": value,
        "wall_ms": round(wall, 1),
        "cpu_ms": round(cpu, 1),
        "cpu_ms_each": round(cpu / value, 2),
    }


def in_proportion(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What the CPU time would be if it grew as the work does, from the smallest step of each sweep on."""
    first: dict[str, float] = {}
    return [one | {"cpu_ms": first.setdefault(one["sweep"], one["cpu_ms_each"]) * one["value"]} for one in rows]


def chart(rows: list[dict[str, Any]]) -> alt.HConcatChart:
    """A panel for each sweep. Both axes are logarithmic, so that growth in proportion is a straight line."""
    measured, proportional = "measured", "in proportion to the work"
    data = [one | {"what": measured} for one in rows] + [one | {"what": proportional} for one in in_proportion(rows)]
    names = [measured, proportional]
    colour = alt.Color("what:N", title=None, legend=alt.Legend(orient="top")).scale(domain=names, range=[LIGHT.blue, LIGHT.grey])
    dash = alt.StrokeDash("what:N", legend=None).scale(domain=names, range=[[1, 0], [5, 4]])
    panels = []
    for sweep in dict.fromkeys(one["sweep"] for one in rows):
        values = [one for one in data if one["sweep"] == sweep]
        ticks = alt.Axis(values=sorted({one["value"] for one in values}), format="d", grid=False)
        x = alt.X("value:Q", title=sweep, axis=ticks).scale(type="log", base=2, nice=False)
        y = alt.Y("cpu_ms:Q", title="CPU ms of a step, all ranks", axis=alt.Axis(tickCount=5)).scale(type="log", nice=False)
        base = alt.Chart(alt.Data(values=values), width=230, height=230).encode(x=x, y=y, color=colour, strokeDash=dash)
        points = base.transform_filter(alt.datum.what == measured).mark_point(filled=True, size=45, opacity=1)
        panels.append(alt.layer(base.mark_line(strokeWidth=2), points))
    return alt.hconcat(*panels, background=LIGHT.background)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--sweeps", nargs="+", choices=SWEEPS, default=list(SWEEPS))
    options.add_argument("--most", type=int, default=64, help="leave out larger numbers")
    options.add_argument("--steps", type=int, default=8)
    options.add_argument("--chart", type=Path, metavar="FILE", help="an SVG file, or PNG by its name")
    chosen = options.parse_args()
    rows = [row(sweep, value, chosen.steps) for sweep in chosen.sweeps for value in SWEEPS[sweep] if value <= chosen.most]
    print(f"gpt-tiny, CPU time of a step, median of {chosen.steps}")
    print_table(rows)
    if chosen.chart is not None:
        kind = chosen.chart.suffix.removeprefix(".")
        chosen.chart.write_bytes(picture(json.dumps(chart(rows).to_dict() | {"config": config(LIGHT)}), kind))


if __name__ == "__main__":
    main()
