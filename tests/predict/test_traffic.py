"""Traffic predicted equals traffic measured, to the byte and to the call, row by row; and its terms add up to it."""

from __future__ import annotations

import pandas as pd
import pytest

from engine.families import FAMILIES
from engine.predict.traffic import traffic
from engine.spec import RunSpec
from tests.engine import test_families, test_generation, test_levers, test_schedules_run
from tests.runs import Runs, small

COLUMNS = ["rank", "axis", "collective", "phase", "group", "calls", "payload_bytes", "wire_bytes"]

# Runs that other tests make anyway. Between them: every family with pipelines cut everywhere, every schedule against every ZeRO
# stage, sequence parallelism and recompute, replicas whose number divides no bucket, groups of three, bf16, and generation.
RUNS: dict[str, RunSpec] = {
    f"{family} {layout}": test_families.spec(family, test_families.LAYOUTS[layout])
    for family in sorted(set(FAMILIES) - {"gpt"})
    for layout in test_families.LAYOUTS
}
RUNS |= {"-".join(map(str, case)): test_schedules_run.spec(*case) for case in test_schedules_run.CASES}
RUNS |= {f"one stage {name}": test_schedules_run.spec(2, name, 3, "flat", "none", pp=1) for name in test_schedules_run.CHUNKS}
RUNS |= {
    "bf16 zb-h1": test_schedules_run.spec(*test_schedules_run.LOW_PRECISION[0], precision="bf16"),
    "long rounds": test_schedules_run.spec(1, "interleaved", 0, "flat", "none", pp=3, layers=6, microbatches=8),
    "all axes": small("dp2.tp2.pp2", microbatches=3, microbatch_size=2, model={"vocab": 257}),
    "tp4": small("tp4", microbatches=3, microbatch_size=2),
    "pp3": small("pp3", "gpipe", microbatches=3, microbatch_size=2),
    "alone": small(),
}
RUNS |= {f"zero-{zero} over four": test_levers.lever("dp4", parity=True, zero=zero) for zero in range(4)}
RUNS |= {
    f"generating {family} {layout}": test_generation.spec(family, test_generation.LAYOUTS[layout], trained=trained)
    for family, layout, trained in [("llama", "tp2.pp2", False), ("gpt", "zero3", True)]
}


def sorted_rows(table: pd.DataFrame) -> pd.DataFrame:
    return table[COLUMNS].sort_values(COLUMNS, ignore_index=True)


@pytest.mark.parametrize("name", RUNS)
def test_the_formula_equals_what_the_door_counted(runs: Runs, name: str) -> None:
    spec = RUNS[name]
    predicted = traffic(spec)
    assert set(predicted["source"]) <= {"formula"}
    pd.testing.assert_frame_equal(sorted_rows(predicted), sorted_rows(runs.result(spec).tables["traffic"]))
