"""The bytes to and from experts that follow from the loads of a run.

Predicted traffic is that of equal loads. The table "expert_load" of a run says how many rows of tokens each expert got from
each rank. A rank sends all rows of its own tokens, and sends back what its experts got. In an all-to-all with unequal parts it
passes all but the rows that stay on it. Backward sends the gradients of the same rows the other way.
"""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import replace
from typing import NamedTuple

import pandas as pd

from engine.ledger.layout import Chunk
from engine.predict.traffic.calls import wire_bytes
from engine.predict.traffic.chunk import trained
from engine.predict.traffic.step import Training
from engine.spec import BYTES_OF, RunSpec
from engine.tables import RunResult
from engine.topology import EP

_COUNT = 8  # bytes of the number of rows for one expert, which ranks exchange first


class _Exchange(NamedTuple):
    """An all-to-all of one layer. `rows`: whose rows it sends, "sent" or "received"; or "counts"."""

    phase: str
    layer: int
    rows: str


def measured_loads(result: RunResult) -> pd.DataFrame | None:
    """The loads of the step whose traffic a run has. None: its traffic is that of equal loads, or the senders are not known.

    A file may say of a run what it cannot have: more rows than its ranks have tokens are no loads.
    """
    loads, spec = result.tables.get("expert_load"), result.spec
    if loads is None or loads.empty or spec.workload.balanced_router or spec.layout.ep == 1:
        return None
    last = loads[loads["step"] == loads["step"].max()]
    model, workload = spec.model, spec.workload
    of_rank = workload.microbatches * workload.microbatch_size * model.seq * model.expert_choices * model.layers
    return None if (last["sender"] < 0).any() or last["tokens"].sum() > spec.layout.ranks * of_rank else last


def with_measured_loads(predicted: RunResult, measured: RunResult) -> RunResult:
    """A prediction with the traffic that follows from the loads of a run of the same spec, if the run has them."""
    loads = measured_loads(measured)
    if loads is None:
        return predicted
    return replace(predicted, tables=predicted.tables | {"traffic": following(measured.spec, predicted.tables["traffic"], loads)})


def following(spec: RunSpec, traffic: pd.DataFrame, loads: pd.DataFrame) -> pd.DataFrame:
    """The table "traffic" of a step with these loads. `traffic`: that of equal loads; `loads`: rows of one step, with senders.

    Calls are as many. Raises `NotRecordedError`.
    """
    moved = traffic["axis"].eq(EP) & traffic["collective"].eq("all_to_all")
    training, mesh, bytes_of_row = Training(spec), spec.layout.mesh, spec.model.hidden * BYTES_OF[spec.workload.precision]
    exchanges = [_exchanges(spec, training.ledgers.on(stage)) for stage in range(mesh.pp)]
    own = loads[loads["rank"] == loads["sender"]]
    received, sent, kept = (
        some.groupby([of, "layer"])["tokens"].sum().to_dict() for some, of in ((loads, "rank"), (loads, "sender"), (own, "rank"))
    )
    counts, payloads, wires = _COUNT * spec.model.experts * spec.workload.microbatches, list[int](), list[int]()
    for rank, phase in traffic.loc[moved, ["rank", "phase"]].itertuples(index=False):
        payload = wire = 0
        for one, times in exchanges[mesh.coordinate(rank).pp].items():
            if one.phase != phase:
                continue
            if one.rows == "counts":
                payload += times * counts
                wire += times * wire_bytes("all_to_all", counts, spec.layout.ep)
                continue
            rows = (sent if one.rows == "sent" else received).get((rank, one.layer), 0)
            payload += times * rows * bytes_of_row
            wire += times * (rows - kept.get((rank, one.layer), 0)) * bytes_of_row
        payloads.append(payload)
        wires.append(wire)
    found = traffic.copy()
    found.loc[moved, "payload_bytes"], found.loc[moved, "wire_bytes"] = payloads, wires
    return found


def _exchanges(spec: RunSpec, chunks: list[Chunk]) -> Counter[_Exchange]:
    """How often a microbatch makes each exchange of a stage."""
    found, ranges = Counter[_Exchange](), spec.layout.layer_ranges(spec.model.layers)
    for chunk in chunks:
        ends = list(itertools.accumulate(chunk.repeats, initial=ranges[chunk.number].start))
        for layer, phase, call, times in trained(chunk.ledger).calls:
            if call.axis == EP and call.collective == "all_to_all":
                names = call.payload.dimensions
                rows = "received" if "M" in names else "counts" if "E/ep" in names or "ep" in names else "sent"
                for one in range(ends[layer], ends[layer + 1]):
                    found[_Exchange(phase, one, rows)] += times
    return found
