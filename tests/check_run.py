#!/usr/bin/env python3
"""Hold a saved run against the contract of DESIGN.md section 5, independently of the engine's own code.

    python check_run.py RUN_FOLDER [RUN_FOLDER ...]

Prints one line a finding and exits 1 if there is any. Needs pandas and pyarrow only.

A copy of shared/check_run.py, which stands beside this repository. It was written from the contract and not from the code,
so that the two can disagree: do not edit it to make a run pass. Only context and expert parallelism, which are younger than that
contract, are added: their axes, their two collectives, and the place of cp in a rank's number.
"""

import json
import math
import sys
from pathlib import Path

import pandas as pd

SOURCES = {"formula", "dry_run", "measured"}
CATEGORIES = {"parameters", "gradients", "optimizer", "activations", "communication", "temporary", "kv_cache"}
COLUMNS = {
    "memory_peak": ["source", "rank", "pp", "dp", "tp", "category", "bytes"],
    "memory_curve": ["source", "rank", "t_ns", "action", "category", "bytes"],
    "process": ["source", "rank", "rss_bytes", "uss_bytes", "baseline_bytes", "peak_rss_bytes"],
    "traffic": ["source", "rank", "axis", "collective", "phase", "group", "calls", "payload_bytes", "wire_bytes"],
    "spans": ["source", "rank", "lane", "kind", "chunk", "microbatch", "step", "start_ns", "end_ns", "cpu_ns"],
    "steps": ["source", "step", "loss", "grad_norm", "step_ns", "tokens"],
    "parity": ["source", "parameter", "max_abs", "max_rel"],
}
OPTIONAL = {"parity"}
# Bytes one rank sends under the ring algorithm, per payload byte handed in, in a group of n.
WIRE = {
    "all_reduce": lambda n: 2 * (n - 1) / n,
    "reduce_scatter": lambda n: (n - 1) / n,
    "all_gather": lambda n: n - 1,
    "all_to_all": lambda n: (n - 1) / n,
    "send_recv": lambda n: 1,
    "send": lambda n: 1,
    "recv": lambda n: 0,
}


def findings(folder: Path):
    """Yield a sentence for everything in `folder` that breaks the contract."""
    try:
        run = json.loads((folder / "run.json").read_text())
    except (OSError, ValueError) as error:
        yield f"run.json: {error}"
        return
    for key in ("spec", "environment", "summary"):
        if key not in run:
            yield f"run.json lacks {key!r}"
    tables = {}
    for name, columns in COLUMNS.items():
        path = folder / f"{name}.parquet"
        if not path.exists():
            if name not in OPTIONAL:
                yield f"{name}: no table"
            continue
        table = pd.read_parquet(path)
        if missing := [c for c in columns if c not in table]:
            yield f"{name}: lacks {missing}"
            continue
        if unknown := set(table["source"]) - SOURCES:
            yield f"{name}: unknown source {unknown}"
        tables[name] = table
    if "memory_peak" in tables:
        yield from memory(tables)
    if "traffic" in tables:
        yield from traffic(tables["traffic"])
    if "spans" in tables:
        yield from spans(tables["spans"])
    if "steps" in tables and not tables["steps"]["loss"].dropna().map(math.isfinite).all():
        yield "steps: a loss is not finite"


def memory(tables):
    peak = tables["memory_peak"]
    if unknown := set(peak["category"]) - CATEGORIES:
        yield f"memory_peak: unknown categories {unknown}"
    if (peak["bytes"] < 0).any():
        yield "memory_peak: negative bytes"
    cp_of = peak["cp"] if "cp" in peak else 0 * peak["tp"]  # a run that is older than context parallelism
    tp, cp, dp = peak["tp"].max() + 1, cp_of.max() + 1, peak["dp"].max() + 1
    wrong = peak[peak["rank"] != ((peak["pp"] * dp + peak["dp"]) * cp + cp_of) * tp + peak["tp"]]
    if len(wrong):
        yield f"memory_peak: rank {wrong['rank'].iloc[0]} is not at its coordinate (tp fastest, then cp, dp, pp)"
    if "memory_curve" in tables:
        totals = peak.groupby(["source", "rank"])["bytes"].sum()
        curve = tables["memory_curve"].groupby(["source", "rank", "t_ns"])["bytes"].sum()
        highest = curve.groupby(["source", "rank"]).max()
        for key, total in totals.items():
            if key in highest.index and highest[key] != total:
                yield f"memory_curve: {key} reaches {highest[key]:,} but its peak says {total:,}"


def traffic(table):
    if unknown := set(table["axis"]) - {"dp", "cp", "tp", "pp", "ep"}:
        yield f"traffic: unknown axes {unknown}"
    for row in table.itertuples():
        ranks = [int(r) for r in str(row.group).replace("[", "").replace("]", "").replace(",", " ").split()]
        if row.rank not in ranks:
            yield f"traffic: rank {row.rank} is not in its own group {row.group}"
            return
        if row.axis == "ep" and row.collective == "all_to_all":  # its parts differ: what stays on the rank is not sent
            if not 0 <= row.wire_bytes <= row.payload_bytes:
                yield f"traffic: {row.wire_bytes} of {row.payload_bytes} bytes of all_to_all over ep are sent"
                return
        elif row.collective in WIRE:
            expected = row.payload_bytes * WIRE[row.collective](len(ranks))
            if abs(row.wire_bytes - expected) > row.calls * len(ranks):
                yield f"traffic: {row.collective} in a group of {len(ranks)}: {row.wire_bytes} wire bytes, the ring sends {expected:.0f}"
                return
    p2p = table[table["collective"].isin(["send", "recv"])].groupby(["source", "collective"])["payload_bytes"].sum().unstack()
    for source, row in p2p.iterrows():
        if row.get("send", 0) != row.get("recv", 0):
            yield f"traffic: {source}: {row.get('send', 0):,.0f} bytes sent, {row.get('recv', 0):,.0f} received"


def spans(table):
    if (table["end_ns"] < table["start_ns"]).any():
        yield "spans: one ends before it starts"
    for key, lane in table[table["lane"] == "compute"].groupby(["source", "rank"]):
        lane = lane.sort_values("start_ns")
        if (lane["start_ns"].iloc[1:].values < lane["end_ns"].iloc[:-1].values).any():
            yield f"spans: two compute spans of {key} overlap"
    work = table[table["kind"].isin(["F", "B", "I", "W"])]
    done = work.groupby(["source", "rank", "step", "chunk", "microbatch"])["kind"].apply(lambda k: "".join(sorted(k)))
    if len(bad := done[~done.isin(["BF", "FIW", "F"])]):
        yield f"spans: {bad.index[0]} ran {bad.iloc[0]!r}: each microbatch runs F and B, or F, I and W, once"


def main():
    failed = False
    for folder in map(Path, sys.argv[1:]):
        for finding in findings(folder):
            print(f"{folder.name}: {finding}")
            failed = True
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    sys.exit(failed)


if __name__ == "__main__":
    main()
