"""Records the ledgers of a model, for every layout and workload that it may have.

    python -m engine.launch.recordings --out FOLDER [--model gpt3-175b …] [--volumes FOLDER]

Without --model, those of all models in the catalog, which takes half an hour or more. Ledgers that are in the folder already are
kept, so that several processes may run at once for different families. With --volumes the files that are shipped are written too,
one for each family and precision.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import get_args

from engine import catalog
from engine.launch.warm import preload
from engine.predict.ledger.dimensions import dimensions, structure
from engine.predict.ledger.form import Ledger, Part, Slicing, Structure
from engine.predict.ledger.keep import Key, Shelf, Volume
from engine.predict.ledger.passes import part_of
from engine.spec import ModelSpec, Recompute, WorkloadSpec

_NUMBERS = (
    WorkloadSpec(precision="fp32"),
    WorkloadSpec(precision="bf16", accumulate="fp32"),
    WorkloadSpec(precision="bf16", accumulate="bf16"),
)


def structures(model: ModelSpec) -> Iterator[Structure]:
    """All that layouts and workloads make of a model. Left out is where each tp rank has one row or one column of something."""
    for cut in get_args(Slicing):
        heads = (1, 2) if cut != "none" else (model.key_heads,)  # of keys, on a rank
        for batch, on_rank, recompute, workload in itertools.product((1, 2), heads, get_args(Recompute), _NUMBERS):
            sizes = dimensions(model, cut, max(1, model.key_heads // on_rank), batch)
            yield structure(model, workload, recompute, cut, sizes)


def parts(model: ModelSpec) -> set[Part]:
    """All that splits of a model's layers into chunks make of it."""
    few = model.model_copy(update={"layers": 6 if model.parts.encoder else 3, "decoder_layers": 3 * model.parts.encoder})
    found = set()
    for start, stop in itertools.combinations_with_replacement(range(few.layers + 1), 2):
        for first, last in itertools.product({False, start == 0}, {False, stop == few.layers}):
            if start < stop or first or last:
                found.add(part_of(few, range(start, stop), first, last)[0])
    return found


def wanted(models: Iterable[ModelSpec]) -> list[Key]:
    """All ledgers of some models."""
    return list(dict.fromkeys((one, part) for model in models for one in structures(model) for part in sorted(parts(model))))


def record_all(keys: Iterable[Key], shelf: Shelf) -> int:
    """How many ledgers were recorded."""
    from engine.launch.record import record

    missing = [key for key in keys if key not in shelf]
    for number, (one, part) in enumerate(missing):
        shelf.put(one, part, record(one, part))
        print(f"{number + 1} of {len(missing)}: {one.name} {part.name}", flush=True)
    return len(missing)


def bind(keys: Iterable[Key], shelf: Shelf, folder: Path) -> None:
    """Write the volumes that `engine.predict.ledger.keep.Library` reads."""
    by_volume: dict[str, dict[Key, Ledger]] = defaultdict(dict)
    for key in keys:
        by_volume[key[0].volume][key] = shelf(*key)
    folder.mkdir(parents=True, exist_ok=True)
    for name, ledgers in by_volume.items():
        (folder / f"{name}.xz").write_bytes(Volume.bind(ledgers))


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m engine.launch.recordings", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="where to put them")
    parser.add_argument("--model", action="append", help="a model of the catalog; may be given more than once")
    parser.add_argument("--volumes", type=Path, metavar="FOLDER", help="where to put the volumes")
    given = parser.parse_args(arguments)
    preload()
    keys, shelf = wanted([catalog.model(name) for name in given.model or catalog.MODELS]), Shelf(given.out)
    record_all(keys, shelf)
    if given.volumes is not None:
        bind(keys, shelf, given.volumes)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
