"""Context parallelism: which tokens a rank has, attention over the ranks, parity, and predictions equal to runs."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from engine import catalog
from engine.api import predict
from engine.launch.recording.client import with_ledgers
from engine.measure.parity import PARITY_LIMIT
from engine.measure.recorder import Recorder
from engine.parallel.attention_blocks import Mixture, blocks_of
from engine.parallel.comm import Comm
from engine.parallel.context import ContextParallel, Pair, own_tokens
from engine.spec import ContextParallelName, LayoutSpec, ModelSpec, RequestError, RunSpec, WorkloadSpec
from engine.tables import compared, traffic_differences
from engine.topology import Mesh
from tests.runs import Runs

KINDS: tuple[ContextParallelName, ...] = ("ring", "all_gather", "ulysses")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("cp", [1, 2, 4])
def test_the_ranks_share_the_tokens_of_a_sequence(kind: ContextParallelName, cp: int) -> None:
    every = [token for index in range(cp) for some in own_tokens(kind, 16, cp, index) for token in some]
    assert sorted(every) == list(range(16))


@pytest.mark.parametrize("kind", ["ring", "all_gather"])
@pytest.mark.parametrize("cp", [2, 4])
def test_causal_work_is_the_same_on_every_rank_and_every_visible_pair_is_computed_once(
    kind: ContextParallelName, cp: int
) -> None:
    """Scores, query by key, over all ranks and steps: exactly those of the causal mask."""
    seq, s = 8 * cp, 8
    seen = torch.zeros(seq, seq, dtype=torch.int64)
    tokens = [torch.tensor([t for some in own_tokens(kind, seq, cp, index) for t in some]) for index in range(cp)]
    for index in range(cp):
        parallel = _rank(kind, cp, index)
        work = set()
        for step in range(cp):
            pairs = parallel.pairs(step, True, s, fused=False)
            for one in pairs:
                rows, columns = tokens[index][one.rows], tokens[(index - step) % cp][one.columns]
                block = torch.ones(len(rows), len(columns), dtype=torch.int64)
                seen[rows[:, None], columns] += block.tril() if one.masked else block
            work.add((step > 0, sum((p.rows.stop - p.rows.start) * (p.columns.stop - p.columns.start) for p in pairs)))
        assert work == {(False, 48), (True, 32)}  # on every rank
    assert torch.equal(seen, torch.ones_like(seen).tril())


def _rank(kind: ContextParallelName, cp: int, index: int) -> ContextParallel:
    return ContextParallel(Comm.without_others(Mesh({"cp": cp}), index, Recorder(), torch.device("cpu")), kind)


@pytest.mark.parametrize("fused", [True, False], ids=["fused", "written"])
@pytest.mark.parametrize("groups", [4, 2, 1])
def test_blocks_of_keys_one_after_the_other_are_attention_to_all(fused: bool, groups: int) -> None:
    torch.manual_seed(0)
    q = torch.randn(2, 4, 6, 8)
    k, v = torch.randn(2, 2, groups, 12, 8)
    for x in (q, k, v):
        x.requires_grad_()
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, v, enable_gqa=True)
    gradient = torch.randn_like(expected)
    wanted = torch.autograd.grad(expected, (q, k, v), gradient)
    every, halves = slice(0, 6), (slice(0, 6), slice(6, 12))
    with torch.no_grad():
        blocks, mixture = blocks_of(q, k[:, :, :6], False, fused, 2), Mixture(q)
        for half in halves:
            mixture.add(every, *blocks.forward(Pair(every, half), q, k[:, :, half], v[:, :, half]))
        out, lse = mixture.result(q.dtype)
        again = blocks_of(q, k[:, :, :6], False, fused, 2, list(blocks.kept))
        found = [again.backward(Pair(every, half), gradient, q, k[:, :, half], v[:, :, half], out, lse) for half in halves]
    torch.testing.assert_close(out, expected.detach())
    torch.testing.assert_close(found[0][0] + found[1][0], wanted[0])
    for which in (1, 2):
        torch.testing.assert_close(torch.cat([one[which] for one in found], 2), wanted[which])


# ------------------------------------------------------------------------------------------------------------ real runs


def spec(
    code: str, kind: ContextParallelName, family: str = "gpt", model: Any = None, layout: Any = None, **workload: Any
) -> RunSpec:
    sizes = {"layers": 3, "seq": 32} | (model or {})
    return RunSpec(
        model=ModelSpec.model_validate(catalog.model(f"{family}-tiny").model_dump() | sizes),
        layout=LayoutSpec(**LayoutSpec.degrees(code), context_parallel=kind, **(layout or {})),
        workload=WorkloadSpec(**{"steps": 2, "microbatches": 2, "microbatch_size": 2} | workload),
        parity=True,
    )


# Each kind with each way of attention, with a mask and without, with the other axes and the levers.
SPECS = (
    spec("cp4", "ring"),
    spec("cp2.tp2", "ring", "llama", {"kv_heads": 2}, {"sequence_parallel": True, "zero": 2}, attention="written"),
    spec("dp2.cp2", "all_gather", layout={"zero": 3, "recompute": "full"}, attention="written", loss_chunk=5),
    spec("cp2.pp2", "all_gather", "transformer", {"layers": 4}, {"zero": 1}),
    spec("cp2.pp2", "ulysses", "bert", {"layers": 4}, {"recompute": "core_attn", "schedule": "zb-h1"}),
    spec("cp4", "ring", "bert", attention="written", loss_chunk=16),
    spec("cp2.pp2", "ring", "llama", {"layers": 4}, {"schedule": "dualpipe-v", "chunks": 2, "zero": 2}, microbatches=4),
)


def _name(one: RunSpec) -> str:
    return f"{one.model.family}-{one.layout.code}-{one.layout.context_parallel}-{one.attention}"


@pytest.mark.parametrize("one", SPECS, ids=_name)
def test_a_run_has_the_gradients_of_the_whole_model_and_the_predicted_bytes_and_calls(runs: Runs, one: RunSpec) -> None:
    result = runs.result(one)
    assert result.summary["parity_max_rel"] <= PARITY_LIMIT
    assert result.summary["loss_max_abs"] <= PARITY_LIMIT
    formula = with_ledgers(lambda: predict(one))
    peaks = compared("memory_peak", result.tables["memory_peak"], formula.tables["memory_peak"])
    totals = peaks.groupby("rank")[["bytes_measured", "bytes_predicted"]].sum()
    assert totals["bytes_measured"].tolist() == totals["bytes_predicted"].tolist()
    assert traffic_differences(result, formula).empty


@pytest.mark.parametrize(
    ("model", "layout", "said"),
    [
        ({"family": "xlnet"}, {"cp": 2}, "two-stream attention, which xlnet has, is not built with context parallelism; cp=1"),
        ({"position": "alibi"}, {"cp": 2}, "position=alibi is not built with context parallelism; cp=1 fits, not cp=2"),
        ({"window": 9}, {"cp": 2}, "window=9 is not built with context parallelism; cp=1 fits, not cp=2"),
        ({"seq": 30}, {"cp": 2}, "cp=2 cuts the sequence into 4 equal parts, and seq=30 is no multiple of that; seq=28 or"),
        (
            {"seq": 36}, {"cp": 2, "tp": 2, "sequence_parallel": True},
            "cp=2 and sequence_parallel over tp=2 cut the sequence into 8 equal parts, and seq=36 is no multiple",
        ),
        (
            {"kv_heads": 2}, {"cp": 4, "context_parallel": "ulysses"},
            "context_parallel=ulysses gives each cp rank a part of the 2 key and value heads that a tp rank has, and cp=4 does",
        ),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_with_what_fits(model: dict[str, Any], layout: dict[str, Any], said: str) -> None:
    family = model.get("family", "gpt")
    with pytest.raises(RequestError, match=said):
        RunSpec(
            model=ModelSpec.model_validate(catalog.model(f"{family}-tiny").model_dump() | {"seq": 32} | model),
            layout=LayoutSpec(**layout),
        )


def test_generating_text_is_refused() -> None:
    with pytest.raises(RequestError, match="generation is not built with context parallelism; cp=1 fits, not cp=2"):
        RunSpec.model_validate({"layout": {"cp": 2}, "generate": {"prompt": "a", "new_tokens": 2}})
