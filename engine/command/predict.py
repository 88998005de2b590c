"""`python -m engine predict`: what a run would cost, by the formulas; nothing is started."""

from __future__ import annotations

import argparse
from typing import Any

from engine import catalog
from engine.command import flags
from engine.command.output import print_json, print_table, size
from engine.predict.memory import Peak, memory
from engine.predict.run import predict
from engine.spec import RequestError, RunSpec
from engine.tables import CATEGORIES, KV_CACHE, RunResult


def add(parser: argparse.ArgumentParser) -> None:
    parser.usage = "%(prog)s [--model NAME] [--layout CODE] …"
    flags.add(parser)
    parser.add_argument("--explain", type=int, metavar="STAGE", help="unfold that stage's peak into the sum that it is")
    parser.add_argument("--json", action="store_true", help="print it as JSON")
    parser.set_defaults(do=run)


def run(arguments: argparse.Namespace) -> int:
    """Returns the exit status."""
    spec = flags.read(arguments)
    peaks = memory(spec).peaks
    if arguments.explain is not None and not 0 <= arguments.explain < len(peaks):
        raise RequestError(f"stage {arguments.explain} is not one of the {len(peaks)}, 0 to {len(peaks) - 1}")
    result = predict(spec)
    if arguments.json:
        shown = peaks if arguments.explain is None else (peaks[arguments.explain],)
        print_json(_as_json(result, shown))
    elif arguments.explain is not None:
        _explain(peaks[arguments.explain])
    else:
        _print(spec, result, peaks)
    return 0


def _as_json(result: RunResult, peaks: tuple[Peak, ...]) -> dict[str, Any]:
    return {
        "spec": result.spec.model_dump(mode="json"),
        "summary": result.summary,
        "stages": [{"stage": peak.stage, "action": peak.action, "bytes": peak.bytes, "terms": _terms(peak)} for peak in peaks],
        "traffic": result.tables["traffic"].drop(columns="source").to_dict("records"),
    }


def _terms(peak: Peak) -> list[dict[str, Any]]:
    return [
        {"category": category, "what": t.name, "formula": t.symbols, "numbers": t.numbers, "bytes": t.value}
        for category, terms in peak.terms.items()
        for t in sorted(terms, key=lambda t: -t.value)
    ]


def _explain(peak: Peak) -> None:
    print(f"stage {peak.stage} at its peak, during {peak.action}: {sum(peak.bytes.values()):,} bytes")
    print_table(_terms(peak))


def _print(spec: RunSpec, result: RunResult, peaks: tuple[Peak, ...]) -> None:
    layout, summary = spec.layout, result.summary
    print(f"{catalog.name_of(spec.model)} as {layout.code}, {layout.schedule}: as the formulas have it, for each rank of a stage")
    rows = []
    for peak in peaks:
        held = {name: size(peak.bytes[name]) for name in (*CATEGORIES, KV_CACHE) if name in peak.bytes}
        rows.append({"stage": peak.stage, "peak": size(sum(peak.bytes.values())), **held, "at": peak.action})
    print_table(rows)
    print(f"  traffic  {size(summary['wire_bytes_per_rank'])} sent by a rank in a step, on average")
    print(f"  bubble   {summary['bubble']:.1%} of the pipeline's time, in textbook times")
