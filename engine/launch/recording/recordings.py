"""Records the ledgers of a model, for every layout, and for the workloads that are common (`shipped`).

    python -m engine.launch.recording.recordings --out FOLDER [--model gpt3-175b …] [--archives engine/ledger/recorded]

Without --model, those of all models in the catalog, which takes about an hour of a core; all cores are used. Ledgers in the
folder are kept. With --archives the files that are shipped are written too, one for each family and precision. If they are
of all models, archives of others are removed.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, get_args

from engine import catalog
from engine.files import write
from engine.launch.host.client import environment
from engine.ledger.dimensions import QKV, dimensions, structure
from engine.ledger.form import Ledger, Part, Slicing, Structure
from engine.ledger.keep import Key, LedgerArchive, LedgerFolder
from engine.ledger.layout import needs_of
from engine.ledger.split import part_of
from engine.ledger.store import LedgerStore, NotRecordedError
from engine.planner.candidates import candidates, cheap_recompute, default_batch, planned_recomputes
from engine.planner.search import MIXED
from engine.predict.bulk.memory import fullest
from engine.predict.bulk.traffic import bulk_traffic
from engine.spec import (
    AttentionName,
    ContextParallelName,
    LayoutSpec,
    ModelSpec,
    Precision,
    Recompute,
    RequestError,
    RunSpec,
    WorkloadSpec,
)

_WORKLOADS = [
    WorkloadSpec(precision=precision, attention=attention)
    for precision, attention in itertools.product(get_args(Precision), get_args(AttentionName))
]
_CHECKLIST = {("none", "none"), *itertools.product(("core_attn", "full"), ("none", "sequence"))}  # recompute and slicing
# Ledgers of a loss in chunks are shipped of models whose loss is in chunks with so many sequences.
_MANY = WorkloadSpec(microbatch_size=8)
_TOKENS = (1, 2), (2, 3)  # of a prompt, and in all
# Models with other parts than their family, of which some ledgers are shipped. Tied llamas are Llama 3.2 and SmolLM2.
_ASKED_FOR = ("llama3.2-1b", "qwen2.5-7b", "qwen3-8b", "gemma3-27b", "bloom-176b")
# Models of which no ledgers are shipped for searches, which would be a thousand more. The first two are to be run, not planned.
_NOT_SEARCHED = ("gpt-tiny-moe", "deepseek-tiny", "deepseek-v2-lite", "olmo2-1b", "olmo2-7b", "olmo2-13b", "olmo2-32b")
_DEVICES = (8, 64, 256, 1024)  # of a search whose ledgers are shipped
_NOT_SHIPPED = ("t5",)  # families; encoder and decoder make 3,500 ledgers, more than a quarter of all
_ONE_QUERY = {"G/tp": 1, "A/G": 1, QKV: 3}  # each rank has one head, and a copy of the key head that it shares with others
_FEW = 12  # recordings that one process makes sooner than several start
_BATCH = 100  # recordings of a process; torch's profiler keeps about a megabyte of each


def _long_sequences() -> Iterator[RunSpec]:
    """Llama 3 8B with one long sequence on each cp of 8 devices."""
    model = catalog.model("llama3-8b").model_copy(update={"seq": 65536})
    workload = WorkloadSpec(precision="bf16", microbatches=1, microbatch_size=1)
    kinds: tuple[Recompute, ...] = ("none", cheap_recompute(model, workload), "full")
    for cp, way, kind in itertools.product((2, 4, 8), get_args(ContextParallelName), kinds):
        layout = LayoutSpec(dp=8 // cp, cp=cp, context_parallel=way, zero=3, recompute=kind)
        yield RunSpec(model=model, layout=layout, workload=workload)


def _mixtures() -> Iterator[RunSpec]:
    """Mixtral 8x7B with equal loads on 16 devices."""
    workload = WorkloadSpec(precision="bf16", microbatches=1, microbatch_size=2, balanced_router=True)
    for ep, kind in itertools.product((1, 2, 8), ("none", "full")):
        layout = LayoutSpec(dp=16, ep=ep, zero=1, recompute=kind)
        yield RunSpec(model=catalog.model("mixtral-8x7b"), layout=layout, workload=workload)


def structures(model: ModelSpec) -> Iterator[Structure]:
    """All that layouts and workloads make of a model. Left out is where each tp rank has one row or one column of something."""
    for cut in get_args(Slicing):
        heads = [{"G/tp": 1}, {"G/tp": 2}]  # of keys, on a rank
        if cut != "none" and model.key_heads < model.heads:
            heads.append(_ONE_QUERY)
        for batch, on_rank, recompute, workload in itertools.product((1, 2), heads, get_args(Recompute), _WORKLOADS):
            sizes = dimensions(model, cut, 1, batch) | on_rank
            yield structure(model, workload, recompute, cut, sizes)
            yield structure(model, workload, recompute, cut, sizes | {"C": 2})
        generates = cut != "sequence" and model.parts.objective == "causal"
        for on_rank, workload, tokens in itertools.product(heads, _WORKLOADS, _TOKENS if generates else ()):
            sizes = dimensions(model, cut, 1, 1, tokens) | on_rank
            yield structure(model, workload, "none", cut, sizes, generates=True)


def parts(model: ModelSpec) -> set[Part]:
    """All that splits of layers into chunks make of it, of however many layers it is."""
    found = set()
    for encoders, decoders in itertools.product((1, 3), (1, 3) if model.parts.encoder else (0,)):
        few = model.model_copy(update={"layers": encoders + decoders, "decoder_layers": decoders})
        for start, stop in itertools.combinations_with_replacement(range(few.layers + 1), 2):
            for first, last in itertools.product({False, start == 0}, {False, stop == few.layers}):
                if start < stop or first or last:
                    found.add(part_of(few, range(start, stop), first, last)[0])
    return found


def shipped_models() -> list[ModelSpec]:
    """Those whose ledgers are shipped: of the catalog the families as they are, and those with other parts that most ask for."""
    as_they_are = [model for model in catalog.MODELS.values() if not model.chosen_parts and not model.sized_parts]
    families = [model for model in as_they_are if model.family not in _NOT_SHIPPED]
    return [*families, *map(catalog.model, _ASKED_FOR)]


def shipped(one: Structure) -> bool:
    """Whether the ledgers of a structure are shipped. Others are recorded where they are asked for.

    Of the kinds of recompute that a search tries, those with fused attention, and with two-stream attention. Where attention
    could be fused and is written, only what training a GPT needs (lessons and published systems), and what the checklist of
    `engine.planner.advice` needs elsewhere. Of a model with other parts than its family, training in bf16 with fused
    attention.
    """
    if one.chosen_parts or one.sized_parts:
        usual = one.precision == "bf16" and one.attention == "fused" and not one.generates
        return usual and one.recompute in _planned(one)
    if not one.generates and one.recompute not in _planned(one):
        return False
    if one.attention == "fused" or one.parts.position == "relative":
        return True
    listed = one.precision == "bf16" and "B" in one.ones and (one.recompute, one.slicing) in _CHECKLIST
    return not one.generates and (one.family == "gpt" or listed)


def _planned(one: Structure) -> tuple[Recompute, ...]:
    """The kinds of recompute that a search tries for models of a structure."""
    return planned_recomputes(ModelSpec(family=one.family, **dict(one.chosen_parts)), WorkloadSpec(attention=one.attention))


def wanted(models: Iterable[ModelSpec]) -> list[Key]:
    """The ledgers of some models that are shipped.

    Those of a loss in chunks are left out where only very large microbatches have it.
    """
    found: dict[Key, None] = {}
    for model in models:
        chunked = _MANY.loss_tokens(model, 1) is not None
        for one, part in itertools.product(filter(shipped, structures(model)), sorted(parts(model))):
            if chunked or not one.chunked_loss:
                found[one.of(part), part] = None
    return list(found)


def shown() -> list[Key]:
    """The ledgers of layouts with cp and with experts that lessons and their tasks have. Others are recorded when asked for."""
    dealt = WorkloadSpec(balanced_router=True)
    runs = (
        *_long_sequences(),
        *_mixtures(),
        RunSpec(model=catalog.model("gpt-tiny"), layout=LayoutSpec(cp=2)),
        RunSpec(model=catalog.model("gpt-tiny-moe"), layout=LayoutSpec(dp=4, ep=2), workload=dealt),
    )
    return sorted(set[Key]().union(*(needs_of(one.model, one.layout, one.workload) for one in runs)))


def searched_models() -> list[ModelSpec]:
    """Those for which a usual search records nothing: nearly all of the catalog."""
    return [model for name, model in catalog.MODELS.items() if model.family not in _NOT_SHIPPED and name not in _NOT_SEARCHED]


def searched(models: Iterable[ModelSpec]) -> list[Key]:
    """The ledgers that usual searches over some models need. Times need no others than memory."""
    none, found = LedgerStore(Path("none"), lambda: LedgerFolder(Path("none"))), set[Key]()
    for model, ranks in itertools.product(models, _DEVICES):
        try:
            grid = candidates(model, ranks, default_batch(ranks), MIXED)
        except RequestError:  # no layout of so small a model has so many ranks
            continue
        for read in (fullest, bulk_traffic):
            try:
                read(model, MIXED, grid, ledgers=none)
            except NotRecordedError as error:
                found |= set(error.keys)
    ends = Part(True, False, 0), Part(False, True, 0)  # chunks without layers, of splits that are not even
    return sorted(found | {(one.of(part), part) for one, _ in found for part in ends})


def record_all(keys: Iterable[Key], folder: LedgerFolder, processes: int = 1) -> int:
    """How many ledgers were recorded. `processes`: how many processes record at once; 1 is this process alone."""
    missing = [key for key in keys if key not in folder]
    size = max(1, min(_BATCH, -(-len(missing) // processes))) if len(missing) >= _FEW else _BATCH
    batches = [missing[start : start + size] for start in range(0, len(missing), size)]
    if processes == 1 or len(batches) < 2:
        _record(missing, folder)
        return len(missing)
    with ThreadPoolExecutor(processes) as threads:
        for number, _ in enumerate(threads.map(partial(_record_elsewhere, folder=folder.folder), batches)):
            print(f"{min((number + 1) * size, len(missing))} of {len(missing)}", flush=True)
    return len(missing)


def _record(keys: Iterable[Key], folder: LedgerFolder) -> None:
    from engine.launch.recording.record import record

    for key in keys:
        folder.put(*key, record(*key))


def _record_elsewhere(keys: Sequence[Key], folder: Path) -> None:
    """In one process of its own. Raises `CalledProcessError` if it fails."""
    program = "engine.launch.recording.recordings"
    command = [sys.executable, "-P", "-m", program, "--out", str(folder), "--keys", "--processes", "1"]
    subprocess.run(command, input=json.dumps(keys), text=True, env=environment(), check=True)


def bind(keys: Iterable[Key], recorded: LedgerFolder, folder: Path, whole: bool) -> None:
    """Write the archives that `engine.ledger.store.LedgerStore` reads. `whole`: other archives in the folder are removed."""
    by_archive: dict[str, dict[Key, Ledger]] = defaultdict(dict)
    for key in keys:
        by_archive[key[0].archive][key] = recorded(*key)
    folder.mkdir(parents=True, exist_ok=True)
    for name, ledgers in by_archive.items():
        write(folder / f"{name}.ledgers", LedgerArchive.bind(ledgers))
    if whole:
        for path in folder.glob("*.ledgers"):
            if path.stem not in by_archive:
                path.unlink()


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m engine.launch.recording.recordings", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="where to put them")
    parser.add_argument("--model", action="append", help="a model of the catalog; may be given more than once")
    parser.add_argument("--keys", action="store_true", help="those that standard input names instead, as JSON")
    parser.add_argument("--archives", type=Path, metavar="FOLDER", help="where to put the archives")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1, metavar="N", help="how many record at once")
    given = parser.parse_args(arguments)
    if given.keys:
        keys = [key_of(one) for one in json.load(sys.stdin)]
    else:
        models = [*map(catalog.model, given.model or ())]
        keys = [*wanted(models or shipped_models()), *([] if models else shown()), *searched(models or searched_models())]
    recorded = LedgerFolder(given.out)
    record_all(keys, recorded, processes=given.processes)
    if given.archives is not None:
        bind(keys, recorded, given.archives, whole=not (given.model or given.keys))
    return 0


def key_of(plain: Any) -> Key:
    """What JSON made of a key."""
    structure, part = plain
    read = Structure(*structure)
    chosen = tuple((name, value) for name, value in read.chosen_parts)
    return read._replace(ones=tuple(read.ones), chosen_parts=chosen, sized_parts=tuple(read.sized_parts)), Part(*part)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
