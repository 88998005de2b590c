"""What is recorded of a model serves every layout of it."""

from __future__ import annotations

import itertools
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

from engine import catalog
from engine.launch.recording.probe import probe
from engine.launch.recording.record import record
from engine.launch.recording.recordings import parts, record_all, searched, searched_models, shipped_models, structures, wanted
from engine.ledger.keep import Key, LedgerFolder, name_of
from engine.ledger.layout import needs_of
from engine.ledger.store import ARCHIVES, RECORDED, LedgerStore, ledger_store
from engine.planner.candidates import planned_recomputes
from engine.spec import LayoutSpec, ModelSpec, WorkloadSpec
from tests.covering import covering, ledgers_of
from tests.predict.random_specs import random_specs


def test_every_chunk_of_every_layout_is_recorded() -> None:
    recorded: dict[Any, set[Key]] = {}
    for spec in (*covering(), *random_specs(100, seed=3)):
        model = spec.model
        same = model.family, model.chosen_parts, model.sized_parts, model.key_heads < model.heads
        if same not in recorded:
            pairs = itertools.product(structures(model), parts(model))
            recorded[same] = {(structure.of(part), part) for structure, part in pairs}
        assert needs_of(model, spec.layout, spec.workload) <= recorded[same]


def test_what_is_shipped() -> None:
    """Of fused attention, the kinds of recompute that a search tries.

    Of written attention, training a GPT, and the checklist of `engine.planner.advice`.
    """
    keys = set(wanted(shipped_models()))
    models = [model for model in shipped_models() if not model.chosen_parts]
    for model in models:
        fused = [one for one in structures(model) if one.attention == "fused" and not one.chunked_loss]
        planned, with_layers = planned_recomputes(model, WorkloadSpec()), [part for part in parts(model) if part.layers]
        assert all(((one.of(part), part) in keys) == (one.recompute in planned) for one in fused for part in with_layers)
    checklist = (
        LayoutSpec(dp=8), LayoutSpec(dp=8, zero=1, recompute="core_attn"),
        *(LayoutSpec(tp=2, pp=2, sequence_parallel=True, recompute=kind) for kind in ("core_attn", "full")),
    )  # fmt: skip
    workload = WorkloadSpec(precision="bf16", microbatch_size=1, attention="written")
    cases = [(model, layout, workload) for model in models for layout in checklist if model.key_heads > 1]
    cases += [
        (catalog.model("gpt-tiny"), LayoutSpec(tp=2, recompute=kind), WorkloadSpec(attention="written"))
        for kind in planned_recomputes(models[0], WorkloadSpec(attention="written"))
    ]
    for case in cases:
        assert needs_of(*case) <= keys
    assert len(keys) < 7_000, "recording takes a quarter of a second each"


def test_of_other_parts_what_training_in_bf16_with_fused_attention_needs_is_shipped() -> None:
    keys = set(wanted(shipped_models()))
    usual = WorkloadSpec(precision="bf16")
    for model in (catalog.model(name) for name in ("llama3.2-3b", "qwen2.5-72b", "qwen3-32b", "gemma3-4b")):
        for layout in (LayoutSpec(dp=2, zero=1), LayoutSpec(tp=2, pp=2, sequence_parallel=True, recompute="full")):
            assert needs_of(model, layout, usual) <= keys
            assert not needs_of(model, layout, usual.model_copy(update={"attention": "written"})) & keys


def test_there_is_a_probe_for_each_ledger_of_the_catalog() -> None:
    keys = wanted(shipped_models())
    assert len(keys) > 1000
    for structure, part in keys:
        made = probe(structure, part)
        assert set(structure.ones).isdisjoint(made.sizes)
        assert len({*made.sizes.values()}) == len(made.sizes), "each size has one name"


def test_shipped_ledgers_equal_new_recordings() -> None:
    """Some are recorded again. If this fails, the layers have changed since: `make ledgers` records all of them."""
    keys = [key for key in wanted(shipped_models()) if key[0].ones in (("A/G",), ())]
    random.Random(0).shuffle(keys)
    some = {(one.family, one.generates, one.slicing): (one, part) for one, part in keys}
    shipped = LedgerStore(ARCHIVES, lambda: LedgerFolder(Path("none")))
    stale = [name_of(*key) for key in some.values() if record(*key) != shipped(*key)]
    assert len(some) > 18
    assert not stale


def test_ledgers_that_come_with_the_tests_equal_new_recordings() -> None:
    """The same: `make ledgers`, or `python -m tests.recordings` for these alone."""
    known = ledger_store().recorded
    keys = sorted(key for spec in covering() for key in ledgers_of(spec) if key in known and key[1].layers)
    some = {key[0].family: key for key in random.Random(0).sample(keys, len(keys))}
    assert len(some) > 4
    assert not [name_of(*key) for key in some.values() if record(*key) != known(*key)]


def test_every_ledger_of_the_catalog_is_shipped() -> None:
    LedgerStore(ARCHIVES, lambda: LedgerFolder(Path("none"))).check(wanted(shipped_models()))


def test_a_usual_search_over_a_model_of_the_catalog_records_nothing() -> None:
    """Tried with one model of each family's parts, of dense ones and of those with experts."""
    alike = {(model.family, model.chosen_parts, model.sized_parts): model for model in searched_models()}
    assert len(alike) > 20
    draw = random.Random(1)
    some = [draw.sample([model for model in alike.values() if bool(model.experts) == experts], 3) for experts in (False, True)]
    keys = searched(itertools.chain(*some))
    shipped = LedgerStore(ARCHIVES, lambda: LedgerFolder(Path("none")))
    shipped.check(keys)
    assert all(record(*key) == shipped(*key) for key in draw.sample(keys, 2))


def test_the_key_of_recordings_covers_all_code_that_they_depend_on() -> None:
    """Whatever of the engine a recording imports is in it, but for what only starts it or reads ledgers."""
    code = "import sys, engine.launch.recording.record; print(*(m for m in sys.modules if m.startswith('engine.')))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    paths = {module.replace(".", "/").removeprefix("engine/") for module in loaded}
    covered = tuple(name.removesuffix(".py") for name in RECORDED)
    assert {path for path in paths if not path.startswith(covered)} <= {"launch", "launch/recording", "predict", "files"}


def test_ledgers_in_the_folder_are_not_recorded_again(tmp_path: Path) -> None:
    shelf, keys = LedgerFolder(tmp_path), wanted([ModelSpec()])[:8]
    ledger = record(*keys[0])
    for key in keys:
        shelf.put(*key, ledger)
    assert record_all(keys, shelf) == 0
