"""`python -m engine predict`: memory, traffic and bubble of a run, by formula. Nothing is started."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pandas as pd

from engine import catalog
from engine.command import flags
from engine.command.output import complain, print_json, print_table, size
from engine.launch.draft import kept
from engine.launch.predicted import predicted
from engine.launch.recording.client import with_ledgers
from engine.planner.inference import inference_table, inference_traffic_table, refuse_beyond_positions, refuse_no_text
from engine.predict.memory import Peak, memory
from engine.predict.run import predict
from engine.spec import RequestError, RunSpec
from engine.tables import CATEGORIES, KV_CACHE, RunResult


def add(parser: argparse.ArgumentParser) -> None:
    parser.usage = "%(prog)s [--model NAME] [--layout CODE] …"
    flags.add(parser)
    parser.add_argument("--explain", type=int, metavar="STAGE", help="unfold that stage's peak into the sum that it is")
    parser.add_argument("--inference", action="store_true", help="what generating text takes, instead of training")
    parser.add_argument(
        "--sequences", type=int, nargs="+", metavar="N", help="for inference: so many at a time in a replica (default 1 and 16)"
    )
    parser.add_argument(
        "--length", type=int, nargs="+", metavar="N", help="for inference: tokens of a sequence (default: the model's seq)"
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="save the result as a folder there; otherwise it is only printed")
    parser.add_argument("--json", action="store_true", help="print it as JSON")
    parser.set_defaults(do=run, kept=lambda arguments: arguments.out is not None)


def run(arguments: argparse.Namespace) -> int:
    """Returns the exit status."""
    spec = flags.read(arguments)
    for name in ("sequences", "length"):
        if getattr(arguments, name) is not None and not arguments.inference:
            raise RequestError(f"--{name} is for inference; give --inference with it")
    if arguments.inference:
        if arguments.out is not None:
            raise RequestError(
                "--inference is a table of several requests and no run to save; leave out --out, or give --skip-training, "
                "--prompt and --new-tokens in place of --inference"
            )
        return _inference(spec, arguments.sequences or [1, 16], arguments.length or [spec.model.seq], arguments.json)
    peaks = with_ledgers(lambda: memory(spec), complain).peaks
    if arguments.explain is not None and not 0 <= arguments.explain < len(peaks):
        raise RequestError(f"stage {arguments.explain} is not one of the {len(peaks)}, 0 to {len(peaks) - 1}")
    result = predict(spec) if arguments.out is None else predicted(spec)
    folder = None if arguments.out is None else kept(result, arguments.out)
    if arguments.json:
        shown = peaks if arguments.explain is None else (peaks[arguments.explain],)
        print_json(_as_json(result, shown) | {"folder": folder and str(folder)})
    elif arguments.explain is not None:
        _explain(peaks[arguments.explain])
    else:
        _print(spec, result, peaks)
    if folder is not None and not arguments.json:
        print(f"  saved    {folder}")
    return 0


def _inference(spec: RunSpec, sequences: list[int], lengths: list[int], as_json: bool) -> int:
    """Print what a rank of each stage holds, and what the busiest rank sends in prefill and in one step of decoding.

    The traffic of a model with an encoder is not predicted.
    """
    if min(*sequences, *lengths) < 1:
        raise RequestError(f"sequences={sequences} and length={lengths} must be 1 and more")
    model, layout, precision = spec.model, spec.layout, spec.workload.precision
    refuse_no_text(model)
    held = with_ledgers(lambda: inference_table(model, layout, precision, sequences, lengths), complain)
    refuse_beyond_positions(model, max(lengths))
    held["total"] = held["parameters"] + held["kv_cache"]
    sent = None
    if not model.parts.encoder:
        sent = with_ledgers(lambda: inference_traffic_table(model, layout, precision, sequences, lengths), complain)
    if as_json:
        rows = None if sent is None else _records(sent)
        print_json({"spec": spec.model_dump(mode="json"), "held": _records(held), "sent": rows})
        return 0
    print(f"{catalog.name_of(model)} as {layout.code}, {precision}, generating: for each rank of a stage")
    print_table(_records(_in_units(held, "parameters", "kv_cache", "total")))
    if sent is None:
        print("\nwhat is sent is not predicted for a model with an encoder")
    elif len(sent):
        print("\nsent by the busiest rank for one pass of all those sequences")
        print_table(_records(_in_units(sent, "wire_bytes")))
    return 0


def _in_units(table: pd.DataFrame, *columns: str) -> pd.DataFrame:
    return table.assign(**{name: table[name].map(size) for name in columns})


def _records(table: pd.DataFrame) -> list[dict[str, Any]]:
    return [{str(name): value for name, value in row.items()} for row in table.to_dict("records")]


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
    if spec.model.experts:
        print(
            f"  model    {spec.model.parameters():,} parameters, of which a token goes through {spec.model.active_parameters():,}"
        )
    print(f"  traffic  {size(summary['wire_bytes_per_rank'])} sent by a rank in a step, on average")
    print(f"  bubble   {summary['bubble']:.1%} of the pipeline's time, in textbook times")
