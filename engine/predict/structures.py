"""Layouts by structure. Those of one structure read the same ledgers, with arrays for the values of dimensions."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from engine.grid import RECOMPUTES, Grid, Marks, Whole, distinct
from engine.ledger.dimensions import dimensions, slicing, structure
from engine.ledger.form import Structure
from engine.spec import ModelSpec, WorkloadSpec
from engine.spec.context import CONTEXTS


class StructureGroup(NamedTuple):
    """Layouts of a structure. `rows`: of the grid, (n,). `values`: of each dimension, of those that differ, (k,) each. `which`:
    which of these each layout has, (n,).
    """

    structure: Structure
    rows: Whole
    values: dict[str, Whole]
    which: Whole

    def sizes(self, some: Whole) -> dict[str, Whole]:
        """The value of each dimension in some of the layouts, by their places in `rows`."""
        which = self.which[some]
        return {name: values[which] for name, values in self.values.items()}


def by_structure(model: ModelSpec, workload: WorkloadSpec, grid: Grid, ones: bool = True) -> list[StructureGroup]:
    """The groups of a grid. `ones`: whether it counts which of the dimensions that depend on the layout are 1."""
    chunked = chunked_loss(model, workload, grid)
    columns = grid.tp, grid.cp, grid.ep, grid.context, grid.microbatch_size, grid.sequence_parallel, chunked
    first, which = distinct(*columns)
    known, of_each, numbers = [], list[int](), dict[Structure, int]()
    whole = int if ones else np.int64  # a number of numpy does not count as 1
    for tp, cp, ep, number, size, sequence, in_chunks in zip(*(column[first].tolist() for column in columns), strict=True):
        cut, context, shared = slicing(tp, sequence), CONTEXTS[number], whole(ep) if ep > 1 else 1
        loss_chunk = whole(workload.most_loss_tokens(model, tp)) if in_chunks else None
        known.append(dimensions(model, cut, whole(tp), whole(size), None, loss_chunk, whole(cp), context, shared))
        of = structure(model, workload, "none", cut, known[-1], context=context)
        of_each.append(numbers.setdefault(of, len(numbers)))
    structures, kinds = list(numbers), np.array(of_each, np.int64)[which] * len(RECOMPUTES) + grid.recompute
    found = []
    for kind in np.unique(kinds).tolist():
        rows = np.flatnonzero(kinds == kind)
        some, place = np.unique(which[rows], return_inverse=True)
        values = {name: np.array([known[one][name] for one in some]) for name in known[some[0]]}
        of, recompute = divmod(kind, len(RECOMPUTES))
        found.append(StructureGroup(structures[of]._replace(recompute=RECOMPUTES[recompute]), rows, values, place))
    return found


def chunked_loss(model: ModelSpec, workload: WorkloadSpec, grid: Grid) -> Marks:
    """Where the loss is computed in chunks of tokens. (n,)"""
    return workload.most_loss_tokens(model, grid.tp) < grid.microbatch_size * (model.output_rows // grid.cp)
