"""`python -m engine search`: the best layouts of a model on N devices, and why."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path
from typing import Any, get_args

import pandas as pd

from engine import catalog, files
from engine.api import search
from engine.command import models
from engine.command.output import complain, print_json, print_table
from engine.devices import device, device_names
from engine.launch.recording.client import with_ledgers
from engine.optimizer import OPTIMIZERS
from engine.papers.accounting import ACCOUNTINGS, AccountingName
from engine.planner.bill import Bill
from engine.planner.explain import Lever, label, way_to_fit, why
from engine.planner.frameworks import NAMES
from engine.planner.reserve import reserve_terms
from engine.planner.search import MIXED, Plan
from engine.planner.serving import serving
from engine.predict.speed.rates import Assumptions
from engine.spec import AttentionName, LayoutSpec, RequestError, WorkloadSpec
from engine.spec.numbers import in_runs

_TOP = 10


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", required=True, metavar="NAME|FILE", help=models.HELP)
    parser.add_argument("--ranks", required=True, type=int, metavar="N", help="how many devices there are")
    named = f"a named device ({', '.join(device_names())}), or a JSON file with one of yours"
    parser.add_argument("--device", required=True, metavar="NAME|FILE.json", help=named)
    parser.add_argument("--global-batch", type=int, metavar="N", help="sequences in a step (default: 2 for each device)")
    length = "sequence length (default: the model's; of a config.json at most 8192)"
    parser.add_argument("--seq", type=int, metavar="N", help=length)
    parser.add_argument("--vocab", type=int, metavar="N", help="tokens of the vocabulary (default: the model's)")
    parser.add_argument("--precision", default=MIXED.precision, metavar="{fp32,bf16}", help="default bf16")
    attentions = f"{{{','.join(get_args(AttentionName))}}}"
    parser.add_argument("--attention", metavar=attentions, help=f"default {MIXED.attention}")
    parser.add_argument(
        "--accumulate", metavar="{fp32,bf16}", help=f"precision of gradients under bf16 (default {MIXED.accumulate})"
    )
    parser.add_argument(
        "--bf16-optimizer",
        action="store_true",
        default=None,
        help="under bf16, no fp32 copy, and states of the optimizer in bf16",
    )
    optimizers = f"{{{','.join(OPTIMIZERS)}}}"
    parser.add_argument("--optimizer", metavar=optimizers, help=f"default {MIXED.optimizer}")
    parser.add_argument(
        "--accounting",
        metavar="NAME",
        help=f"whose formulas for memory: {', '.join(ACCOUNTINGS)} (default engine)",
    )
    parser.add_argument(
        "--only", metavar="FRAMEWORK", help=f"layouts that it runs as they are: {', '.join(NAMES)} (default: all)"
    )
    parser.add_argument(
        "--reserve", type=float, metavar="GIB",
        help="GiB of a device that tensors must leave free (default: CUDA context, NCCL's buffers, cuBLAS's workspace and "
        "fragmentation, for each layout)",
    )  # fmt: skip
    parser.add_argument("--tokens", type=float, metavar="N", help="also say what training on so many takes: days, device-hours")
    parser.add_argument("--price", type=float, metavar="X", help="with --tokens, also money: the price of a device for an hour")
    parser.add_argument(
        "--watts", type=float, metavar="W", help="with --tokens, also energy: W of a device and its share of a node"
    )
    parser.add_argument(
        "--assume", action="append", default=[], metavar="NAME=VALUE",
        help=f"an efficiency other than the default; may come several times: {', '.join(Assumptions.model_fields)}",
    )  # fmt: skip
    parser.add_argument("--inference", action="store_true", help="plan for generating text instead of training")
    parser.add_argument("--length", type=int, metavar="N", help="for inference: tokens of a sequence (default: the model's seq)")
    parser.add_argument("--sequences", type=int, metavar="N", help="for inference: sequences at a time (default: as many as fit)")
    parser.add_argument("--top", type=int, default=_TOP, metavar="N", help=f"so many rows (default {_TOP})")
    parser.add_argument("--out", type=Path, metavar="FILE.csv", help="write every layout there, those that do not fit as well")
    parser.add_argument("--json", action="store_true", help="print it as JSON")
    parser.set_defaults(do=_search)


def assumptions(given: Iterable[str]) -> Assumptions:
    """["matmul_efficiency=0.6"] → the default assumptions with these changes. Raises `RequestError`."""
    changed: dict[str, str] = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals:
            raise RequestError(f"--assume {text!r} is not of the form NAME=VALUE, such as matmul_efficiency=0.6")
        changed[name] = value
    return Assumptions.model_validate(changed)


def kept_free(gib: float | None) -> int | None:
    """GiB → bytes. Raises `RequestError` if it is not a size."""
    if gib is None:
        return None
    if not 0 <= gib <= 1e6:
        raise RequestError(f"--reserve {gib:g} is not from 0 to 1,000,000 GiB")
    return round(gib * 2**30)


def _search(arguments: argparse.Namespace) -> int:
    free = kept_free(arguments.reserve)
    if arguments.top < 1:
        raise RequestError(f"--top {arguments.top} shows nothing; 1 and more do")
    if arguments.inference:
        return _serve(arguments, free)
    for name in ("length", "sequences"):
        if getattr(arguments, name) is not None:
            raise RequestError(f"--{name} is for inference; give --inference with it")
    for name in ("price", "watts"):
        if getattr(arguments, name) is not None and arguments.tokens is None:
            raise RequestError(f"--{name} is for what a training takes; give --tokens with it")
    plan = _plan(arguments, free)
    bill = _bill(plan, arguments)
    _write(plan.layouts, arguments.out)
    if arguments.json:
        print_json(_as_json(plan, arguments.top) | {"bill": bill and bill.as_json()})
    else:
        _print(plan, arguments.top)
        if bill is not None:
            print(f"\n{bill.text()}")
        if arguments.out is not None:
            print(f"\nall {len(plan.layouts):,} are in {arguments.out}")
    return 0


def _bill(plan: Plan, arguments: argparse.Namespace) -> Bill | None:
    """What training takes with the best layout. None if that is not asked, or if no layout fits."""
    if arguments.tokens is None or not plan.feasible:
        return None
    speed = float(plan.layouts["tokens_per_second"].iloc[0])
    return Bill(arguments.tokens, plan.ranks, speed, arguments.price, arguments.watts)


def _serve(arguments: argparse.Namespace, free: int | None) -> int:
    """Print the layouts for inference, and how fast they are."""
    if arguments.global_batch is not None:
        raise RequestError("--global-batch is for training; --sequences says how many are generated at a time")
    for name in ("optimizer", "attention", "accumulate", "bf16_optimizer", "accounting", "only", "tokens", "price", "watts"):
        if getattr(arguments, name) is not None:
            raise RequestError(f"--{name.replace('_', '-')} is for training; leave it out, or --inference")
    model, gpu = models.model(arguments.model, arguments.vocab), device(arguments.device)
    workload = WorkloadSpec.model_validate({"precision": arguments.precision})
    length = arguments.length or arguments.seq or model.seq
    assumed, sequences = assumptions(arguments.assume), arguments.sequences
    asked = model, arguments.ranks, gpu, length, sequences, workload.precision, assumed, free
    table = with_ledgers(lambda: serving(*asked), complain)
    _write(table, arguments.out)
    count = int(table["fits"].sum())
    rows = table.head(max(1, min(arguments.top, count)))
    if arguments.json:
        print_json({"length": length, "feasible": count, "device": gpu.model_dump(), "layouts": rows.to_dict("records")})
        return 0
    print(f"{len(table):,} layouts of {arguments.model} on {arguments.ranks:,} × {gpu.name} for sequences of {length:,} tokens: "
          f"{count:,} fit {gpu.memory_bytes / 2**30:,.0f} GiB\n")  # fmt: skip
    print_table([_serving_row(row) for row in rows.to_dict("records")])
    if not count:
        print(f"\nnone fits; that one needs least, and it {rows['reason'].iloc[0]}")
    return 0


def _serving_row(row: dict[Any, Any]) -> dict[str, Any]:
    return {
        "layout": row["layout"],
        "parameters": f"{row['parameters_bytes'] / 2**30:7.1f} GiB",
        "cache of a sequence": f"{row['cache_bytes'] / 2**30:7.3f} GiB",
        "sequences": row["sequences"],
        "memory": f"{row['memory_bytes'] / 2**30:7.1f} GiB",
        "reserve": f"{row['reserve_bytes'] / 2**30:5.1f} GiB",
        "a token": f"{1e3 * row['token_s']:8.2f} ms",
        "tokens/s": f"{row['tokens_per_second']:10,.0f}",
    }


def _write(table: pd.DataFrame, file: Path | None) -> None:
    if file is None:
        return
    try:
        files.write(file, table.to_csv(index=False).encode())
    except OSError as error:
        raise RequestError(f"cannot write {file}: {error.strerror or error}") from error


def _plan(arguments: argparse.Namespace, free: int | None) -> Plan:
    model = models.model_to_train(arguments.model, arguments.seq, arguments.vocab)
    given = {name: getattr(arguments, name) for name in ("optimizer", "attention", "accumulate", "bf16_optimizer")}
    chosen = {"precision": arguments.precision} | {name: value for name, value in given.items() if value is not None}
    whole = {"accumulate": "fp32"} if arguments.precision == "fp32" and arguments.accumulate is None else {}
    workload = WorkloadSpec.model_validate(MIXED.model_dump() | whole | chosen)
    account: AccountingName = arguments.accounting or "engine"
    assumed = assumptions(arguments.assume)
    asked = model, arguments.ranks, arguments.device, arguments.global_batch, workload, assumed, account, arguments.only, free
    return search(*asked, announce=complain)


# ----------------------------------------------------------------------------------------------------------------- text


def _print(plan: Plan, top: int) -> None:
    table, memory = plan.layouts, f"{plan.device.memory_bytes / 2**30:,.0f} GiB"
    print(
        f"{len(table):,} layouts of {catalog.name_of(plan.model)} on {plan.ranks:,} × {plan.device.name}, {plan.global_batch:,} "
        f"sequences of {plan.model.seq:,} tokens a step: {plan.feasible:,} fit {memory}\n"
    )
    shown = range(min(top, plan.feasible or 1))
    uneven = any(plan.layouts["split"].iloc[[*shown]])
    print_table([_row(plan, row, uneven) for row in shown])
    if not plan.feasible:
        print(f"\nnone fits; that one needs least, and it {table['reason'].iloc[0]}")
    if plan.feasible > 1:
        print("\nwhy the first and not the second:")
        _list(why(plan))
    if plan.missed is not None:
        way = _way_to_fit(plan)
        print(f"\n{label(plan, plan.missed)} would be faster, {table['step_s'].iloc[plan.missed]:.3f} s a step, but it "
              f"{table['reason'].iloc[plan.missed]}; {_how_far(plan, way)}")  # fmt: skip
        _list(lever.reason for lever in way)
    values = ", ".join(f"{name}={value}" for name, value in plan.assumed.model_dump().items())
    print(f"\nmemory by {plan.accounting}; {_kept_free_text(plan)}; times assume {values}")


def _kept_free_text(plan: Plan) -> str:
    """What is kept free beside tensors: of the first layout, term by term."""
    if plan.reserve is not None:
        return f"{plan.reserve / 2**30:.3g} GiB of every device are kept free"
    first = plan.layouts.iloc[0]
    degrees = int(first["dp"]) * int(first["cp"]), int(first["tp"]), int(first["pp"])
    copies = plan.model.key_copies(int(first["tp"]))
    others = copies, int(first["cp"]), int(first["zero_replicas"])
    terms = reserve_terms(plan.device, *degrees, plan.model.parts.tied, int(first["memory_bytes"]), *others)
    parts = ", ".join(f"{term.bytes / 2**30:.2f} GiB {term.name}" for term in terms)
    return f"kept free on the first: {parts or 'nothing'}"


def _how_far(plan: Plan, way: list[Lever]) -> str:
    """Whether the changes that are listed after this text are enough to make the layout fit."""
    if not way:
        return "no lever makes it smaller: take more devices, or larger ones"
    if way[-1].fits:
        return "the cheapest change that makes it fit:" if len(way) == 1 else "the cheapest changes that together make it fit:"
    left, have = way[-1].with_reserve / 2**30, plan.device.memory_bytes / 2**30
    return (
        f"no lever makes it fit: all of them together bring it to {left:.1f} GiB with its reserve, and the device has {have:.1f}:"
    )


def _list(reasons: Iterable[Any]) -> None:
    for reason in reasons:
        print(f"  {reason}")


def _row(plan: Plan, row: int, uneven: bool) -> dict[str, Any]:
    """The columns that fit on a terminal. `uneven`: whether layers are split unevenly by one of the rows."""
    r = plan.layouts.iloc[row]
    return {
        "": row + 1,
        "layout": r["layout"],
        "schedule": r["schedule"] + (f" × {r['chunks']}" if r["chunks"] > 1 else ""),
        **({"layers": in_runs(LayoutSpec.split_of(r["split"])) or "even"} if uneven else {}),
        "microbatches": f"{r['microbatches']:,} × {r['microbatch_size']}",
        "zero": f"{r['zero']}" + (f" in {r['zero_replicas']} groups" if r["zero_replicas"] > 1 else ""),
        "sp": "yes" if r["sequence_parallel"] else "no",
        "recompute": r["recompute"] + (f", {r['recompute_layers']} of a chunk" if r["recompute_layers"] else ""),
        "memory": f"{r['memory_bytes'] / 2**30:7.1f} GiB",
        "reserve": f"{r['reserve_bytes'] / 2**30:5.1f} GiB",
        "step": f"{r['step_s']:8.3f} s",
        "bubble": f"{100 * max(0.0, r['bubble']):5.1f} %",  # rounding errors may leave it slightly below 0
        "TFLOP/s": f"{r['tflops_per_device']:7.1f}",
        "MFU": f"{100 * r['mfu']:5.1f} %",
        "tokens/s": f"{r['tokens_per_second']:12,.0f}",
        "pareto": "yes" if r["pareto"] else "",
    }


def _as_json(plan: Plan, top: int) -> dict[str, Any]:
    rows = plan.layouts.head(max(1, min(top, plan.feasible)))
    reasons = why(plan) if plan.feasible > 1 else []
    way = _way_to_fit(plan)
    return {
        "model": plan.model.model_dump(),
        "device": plan.device.model_dump(),
        "ranks": plan.ranks,
        "global_batch": plan.global_batch,
        "accounting": plan.accounting,
        "assumed": plan.assumed.model_dump(),
        "weighed": len(plan.layouts),
        "feasible": plan.feasible,
        "reserve": plan.reserve,
        "layouts": rows.to_dict("records"),
        "why": [str(reason) for reason in reasons],
        "missed": None if plan.missed is None else plan.layouts.iloc[plan.missed].to_dict(),
        "way_to_fit": [
            {
                "change": str(lever.reason),
                "memory_bytes": lever.memory_bytes,
                "with_reserve": lever.with_reserve,
                "step_s": lever.step_s,
                "fits": lever.fits,
            }
            for lever in way
        ],
    }


def _way_to_fit(plan: Plan) -> list[Lever]:
    """What makes the fastest layout that does not fit do so; empty if there is none."""
    if plan.missed is None:
        return []
    missed = plan.spec(plan.missed)
    return with_ledgers(lambda: way_to_fit(plan, missed), complain)
