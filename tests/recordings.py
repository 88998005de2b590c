"""Records the ledgers that tests need and that are not shipped, into the file that comes with the tests.

    python -m tests.recordings

It takes some minutes of two cores. Ledgers in the folder that SHARDSCOPE_LEDGERS names are not recorded again.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial

from engine.api import predict
from engine.files import write
from engine.launch.recording.client import with_ledgers
from engine.ledger.store import KEPT_IN, ledger_store
from engine.predict.bulk.memory import fullest
from engine.spec import RunSpec
from tests.covering import covering, ledgers_of
from tests.recorded import FILE, pack


def specs() -> list[RunSpec]:
    """Layouts that tests predict, of structures that are not shipped."""
    from tests.engine import test_context, test_experts, test_hybrid, test_latent
    from tests.ledger import test_against_dry_run, test_bulk
    from tests.predict import test_bulk_axes

    model, workload, some = test_bulk.some_layouts()
    return [
        *covering(), *test_context.SPECS, *test_hybrid.SPECS, *test_latent.RUNS.values(), test_latent.CACHED,
        *test_experts.EQUAL_LOADS.values(), *test_against_dry_run.CASES.values(), test_against_dry_run.ONE_QUERY,
        *(some.spec(i, model, workload) for i in range(len(some))),
        *(spec for which in test_bulk_axes.LAYOUTS.values() for spec in test_bulk_axes.specs_of(*which)),
    ]  # fmt: skip


def questions() -> Iterator[Callable[[], object]]:
    """What else they ask of such a structure."""
    from tests.ledger import test_bulk
    from tests.predict import test_bulk_axes, test_cost

    yield partial(fullest, *test_bulk.some_layouts())
    for name in test_bulk_axes.LAYOUTS:
        yield partial(test_bulk_axes.cost_of, name)
    for name in test_cost.WRITTEN:
        yield partial(test_cost.passes_of, name)


def main() -> int:
    with tempfile.TemporaryDirectory() as home:
        os.environ.setdefault(KEPT_IN, home)
        several = specs()
        with_ledgers(lambda: ledger_store().check({key for spec in several for key in ledgers_of(spec)}), print)
        for spec in several:
            predict(spec)
        for question in questions():
            with_ledgers(question, print)
        write(FILE, pack(ledger_store().recorded.folder))
    return 0


if __name__ == "__main__":
    sys.exit(main())
