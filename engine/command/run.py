"""`python -m engine run`: run a spec on this machine, save the run, and print a summary."""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Any

from engine import catalog, store
from engine.command import flags
from engine.command.output import HOME, complain, highest, print_json, size
from engine.command.progress import Progress
from engine.launch.queue.following import follow, saved_folder
from engine.launch.queue.run_queue import RunQueue
from engine.launch.recording.client import with_ledgers
from engine.predict.run import predict
from engine.predict.traffic.loads import measured_loads, with_measured_loads
from engine.tables import RunResult, memory_errors, traffic_differences

DONE, FAILED, WRONG = 0, 1, 2  # exit statuses; if a signal ended the run, 128 + its number: 130 after Ctrl-C


def add(parser: argparse.ArgumentParser) -> None:
    parser.usage = "%(prog)s [--model NAME] [--layout CODE] [--steps N] …"
    flags.add(parser)
    parser.add_argument("--out", type=Path, default=HOME, metavar="DIR", help=f"where the run's folder is put (default {HOME})")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    parser.set_defaults(do=run, kept=lambda arguments: True)


def run(arguments: argparse.Namespace) -> int:
    """Returns the exit status."""
    spec = flags.read(arguments)
    progress = Progress(sys.stderr)
    with RunQueue(arguments.out, unwatched_s=None) as queue:
        id = queue.submit(spec)
        with _CancelOnSignal(queue, id) as signals:
            state = follow(queue, id, progress.show)
    progress.end()
    if state.phase == "cancelled":
        complain(state.message)
        return 128 + (signals.number or signal.SIGINT)
    folder = saved_folder(state)
    result = store.load(folder)
    if arguments.json:
        print_json(_as_json(result, folder))
    else:
        print(_as_text(result, folder))
    return DONE


class _CancelOnSignal:
    """In this context, SIGINT (Ctrl-C) or SIGTERM cancels the run and waits for its end. A second one ends this process."""

    def __init__(self, queue: RunQueue, id: str) -> None:
        self._queue, self._id = queue, id
        self._before: dict[int, Any] = {}
        self.number: int | None = None  # of the signal that came

    def __enter__(self) -> _CancelOnSignal:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._cancel)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _cancel(self, number: int, frame: FrameType | None) -> None:
        self.number = number
        signal.signal(number, signal.SIG_DFL)  # a second signal ends this process; the host notices that, and ends the ranks
        self._queue.cancel(self._id)


def _as_json(result: RunResult, folder: Path) -> dict[str, Any]:
    return {
        "spec": result.spec.model_dump(mode="json"),
        "environment": result.environment,
        "summary": result.summary,
        "steps": result.tables["steps"].drop(columns="source").to_dict("records"),
        "folder": str(folder),
    }


def _compared_with_formula(result: RunResult) -> str:
    """One line on the errors of the prediction."""
    predicted = with_ledgers(lambda: with_measured_loads(predict(result.spec), result), complain)
    measured = measured_loads(result) is not None
    errors = memory_errors(result, predicted).abs()
    memory = f"{errors.max():.2%} off at the worst" if errors.max() else "exact on every rank"
    wrong = len(traffic_differences(result, predicted))
    compared = f"memory {memory}; traffic {f'differs in {wrong} rows' if wrong else 'equal, to the byte and to the call'}"
    if result.spec.model.experts and not result.spec.workload.balanced_router:
        which = "memory is" if measured else "both are"
        compared += f". Of the prediction, {which} that of a balanced router: --balanced-router runs one"
        if measured:
            compared += "; bytes to experts follow from the measured loads"
    return compared


def _as_text(result: RunResult, folder: Path) -> str:
    spec, summary = result.spec, result.summary
    layout = spec.layout
    trained, steps = "loss_last" in summary, summary["steps"]
    lines = {
        "loss": f"{summary['loss_first']:.4f} → {summary['loss_last']:.4f} in {steps} step{'' if steps == 1 else 's'}"
        if trained
        else "not trained",
        "memory": highest(summary, layout),
        "traffic": f"{size(summary['wire_bytes_per_rank'])} sent by a rank in a step, on average",
        "bubble": f"{summary['bubble']:.1%} of the pipeline's time",
        "speed": f"{summary['tokens_per_second']:,.0f} tokens a second",
    }
    if "parity_max_rel" in summary:
        lines["parity"] = f"{summary['parity_max_rel']:.1e} is the largest difference of a gradient from the unsharded model's"
    lines["formula"] = _compared_with_formula(result)
    if "generated" in summary:
        lines["text"] = f"{summary['generated']['prompt']!r} → {summary['generated']['text']!r}"
    lines["saved"] = str(folder)
    title = f"{catalog.name_of(spec.model)} as {layout.code}, {layout.schedule}, on {result.environment['backend']}"
    return "\n".join([title, *(f"  {name:<9}{text}" for name, text in lines.items())])
