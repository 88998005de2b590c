"""Experts: every layout trains the same model, loads are what tables say, and formulas equal runs where loads are equal."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from engine.api import predict
from engine.measure.parity import PARITY_LIMIT
from engine.measure.recorder import Recorder
from engine.model.experts import ExpertLayer, Router
from engine.parallel.comm import Comm
from engine.parallel.expert import Dispatch, grouped, grouped_outer
from engine.parallel.routing import Routing
from engine.parallel.tensor import TensorParallel
from engine.parallel.update import update_biases
from engine.predict.traffic.loads import with_measured_loads
from engine.reference import train_unsharded
from engine.spec import GenerateSpec, LayoutSpec, ModelSpec, RequestError, RunSpec, WorkloadSpec
from engine.tables import compared, traffic_differences
from tests.runs import Runs

pytestmark = pytest.mark.usefixtures("one_thread")

SIZES: dict[str, Any] = {"layers": 4, "hidden": 32, "heads": 4, "vocab": 256, "seq": 16, "experts": 8, "expert_ffn": 24}


def spec(layout: dict[str, Any], model: dict[str, Any], prompt: str = "", **workload: Any) -> RunSpec:
    return RunSpec(
        model=ModelSpec(**SIZES | model),
        layout=LayoutSpec(**layout),
        workload=WorkloadSpec(**{"steps": 2, "microbatches": 2, "microbatch_size": 1} | workload),
        generate=GenerateSpec(prompt=prompt, new_tokens=4),
        parity=True,
    )


SEQUENCE = spec(
    {"dp": 2, "tp": 2, "ep": 2, "zero": 3, "sequence_parallel": True, "recompute": "full"},
    {"family": "llama", "balancing": "loss", "balancing_rate": 0.1, "expert_groups": 4, "chosen_groups": 2},
)
DROPPING = spec(
    {"dp": 4, "ep": 2, "zero": 1, "recompute": "mlp_act"},
    {"capacity_factor": 0.6, "dense_layers": 1, "normalized_router": False, "experts_per_token": 3},
    prompt="abc",
)
BIASED: dict[str, Any] = {"router": "sigmoid", "balancing": "bias", "router_scale": 2.5, "shared_ffn": 16, "expert_every": 2}
ZERO_BUBBLE = spec({"dp": 2, "pp": 2, "ep": 2, "schedule": "zb-h1"}, BIASED, steps=3, microbatches=4)


@pytest.mark.parametrize("run", [SEQUENCE, DROPPING, ZERO_BUBBLE], ids=["sequence", "dropping", "zero-bubble"])
def test_every_layout_trains_the_same_model(runs: Runs, run: RunSpec) -> None:
    result = runs.result(run)
    table = result.tables["parity"]
    too_far = table[~(table["max_rel"] <= PARITY_LIMIT)]
    assert too_far.empty, too_far.to_string()
    assert result.summary["loss_max_abs"] <= PARITY_LIMIT


def test_the_norm_is_that_of_all_experts(runs: Runs) -> None:
    gradients, _, _ = train_unsharded(DROPPING)
    norm = torch.stack([gradient.square().sum() for gradient in gradients.values()]).sum().sqrt()
    assert runs.result(DROPPING).tables["steps"]["grad_norm"].iloc[0] == pytest.approx(float(norm), rel=1e-5)


def test_a_layout_generates_the_same_tokens(runs: Runs) -> None:
    alone = DROPPING.model_copy(
        update={"layout": LayoutSpec(), "workload": WorkloadSpec(steps=2, microbatches=8, microbatch_size=1)}
    )
    assert runs.result(DROPPING).summary["generated"]["tokens"] == runs.result(alone).summary["generated"]["tokens"]


EQUAL_LOADS = {
    "tensor-parallel": spec(
        {"dp": 4, "tp": 2, "ep": 2, "zero": 2, "sequence_parallel": True}, {"dense_layers": 1}, balanced_router=True
    ),
    "zero-bubble": spec(
        {"dp": 2, "pp": 2, "ep": 2, "zero": 3, "schedule": "zb-h1"}, BIASED, balanced_router=True, precision="bf16"
    ),
}


@pytest.mark.parametrize("run", EQUAL_LOADS.values(), ids=EQUAL_LOADS)
def test_with_equal_loads_the_formula_equals_the_run_to_the_byte_and_call(runs: Runs, run: RunSpec) -> None:
    run = run.model_copy(update={"parity": False})
    measured, predicted = runs.result(run), predict(run)
    for name in ("memory_peak", "traffic"):
        both = compared(name, measured.tables[name], predicted.tables[name])
        numbers = {column.removesuffix("_measured") for column in both.columns if column.endswith("_measured")}
        wrong = both[[*both.columns]][sum(both[f"{n}_measured"] != both[f"{n}_predicted"] for n in numbers) > 0]
        assert len(both)
        assert wrong.empty, wrong.to_string()


def test_loads_add_up_to_all_choices_of_a_step(runs: Runs) -> None:
    loads = runs.result(SEQUENCE).tables["expert_load"]
    model, layout, workload = SEQUENCE.model, SEQUENCE.layout, SEQUENCE.workload
    choices = layout.dp * workload.microbatches * workload.microbatch_size * model.seq * model.expert_choices
    # Each tp rank has a slice of the same experts, which get the same rows.
    assert set(loads.groupby(["step", "layer"])["tokens"].sum()) == {layout.tp * choices}
    assert set(loads[loads["rank"] == 0]["expert"]) == {0, 1, 2, 3}
    dropped = runs.result(DROPPING).tables["expert_load"]
    dropped = dropped.groupby(["rank", "step", "layer", "expert"], as_index=False)["tokens"].sum()
    assert dropped["tokens"].max() <= 8 * -(-0.6 * 16 * 3 // 8), "capacity of a microbatch × the microbatches of a step"
    assert set(dropped["layer"]) == {1, 2, 3}


@pytest.mark.parametrize("run", [SEQUENCE, DROPPING, ZERO_BUBBLE], ids=["sequence", "dropping", "zero-bubble"])
def test_from_measured_loads_follows_the_traffic_to_the_byte_and_call(runs: Runs, run: RunSpec) -> None:
    measured, balanced = runs.result(run), predict(run)
    assert not traffic_differences(measured, balanced).empty, "loads are unequal"
    assert traffic_differences(measured, with_measured_loads(balanced, measured)).empty


# ------------------------------------------------------------------------------------------------------------- the parts


def alone(balanced: bool = False) -> TensorParallel:
    return TensorParallel(Comm.alone(torch.device("cpu")), routing=Routing(balanced))


def test_an_expert_drops_its_last_rows() -> None:
    chosen = torch.tensor([[0], [1], [0], [0], [1]])
    kept = Dispatch(chosen, 2, 2, alone())
    assert kept.token.tolist() == [0, 2, 1, 4]
    assert (kept.counts, kept.all_loads) == ([2, 2], [3, 2])


def test_balanced_loads_are_equal_and_known_without_looking() -> None:
    layer = ExpertLayer(ModelSpec(**SIZES), alone(balanced=True), 0)
    for p in layer.parameters():
        torch.nn.init.normal_(p)
    assert layer(torch.randn(2, 16, 32)).shape == (2, 16, 32)
    assert layer.arrived == [2 * 16 * 2 // 8] * 8


@pytest.mark.parametrize("counts", [[3, 3], [1, 5], [6, 0]])
def test_a_grouped_product_is_that_of_each_expert(counts: list[int]) -> None:
    x, weight, gradient = torch.randn(6, 5), torch.randn(2, 5, 4), torch.randn(6, 4)
    comm = Comm.without_others(alone().comm.mesh, 0, Recorder(), torch.device("cpu"))
    first = counts[0]
    expected = torch.cat((x[:first] @ weight[0], x[first:] @ weight[1]))
    torch.testing.assert_close(grouped(x, weight, counts, comm), expected)
    found = grouped_outer(gradient, x, counts, comm)
    torch.testing.assert_close(found, torch.stack((gradient[:first].T @ x[:first], gradient[first:].T @ x[first:])))


def _choices(scores: Tensor, **model: Any) -> list[int]:
    """The experts that a router chooses for a token with these logits."""
    router = Router(ModelSpec(**SIZES | {"hidden": 8} | model), alone())
    with torch.no_grad():
        router.weight.copy_(torch.eye(8))
    return sorted(router(scores.view(1, 1, 8))[1].flatten().tolist())


def test_only_experts_of_the_best_groups_are_chosen() -> None:
    scores = torch.tensor([3.0, 0, 2, 2, 0, 1, 0, 0])
    assert _choices(scores) in ([0, 2], [0, 3])
    assert _choices(scores, expert_groups=4) == [0, 1], "the group with the best expert (DeepSeek-V2)"
    assert _choices(scores, expert_groups=4, router="sigmoid") == [2, 3], "the group with the best two (DeepSeek-V3)"


def test_a_bias_moves_choices_and_not_weights() -> None:
    tp = alone()
    layer = ExpertLayer(ModelSpec(**SIZES, balancing="bias"), tp, 0)
    assert layer.router.bias is not None
    layer.loads = [8, 0, 4, 4, 4, 4, 4, 4]
    update_biases([layer], 0.5, tp.comm)
    assert layer.router.bias.tolist() == [-0.5, 0.5, 0, 0, 0, 0, 0, 0]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"experts": 0}, "expert_ffn=24 is for models with experts, and experts=0"),
        ({"experts_per_token": 9}, "experts_per_token=9 is more than experts=8"),
        ({"expert_groups": 3}, "expert_groups=3 does not divide experts=8; 1, 2, 4 and 8 do"),
        ({"expert_groups": 8}, "the groups that a token chooses have 1 experts, and experts_per_token=2"),
        ({"dense_layers": 4}, "none of the 4 layers would have experts: dense_layers=4, expert_every=0"),
        ({"experts_per_token": 1}, "normalized_router=false fits"),
        ({"parallel": "one_norm"}, "experts come after attention, not in parallel=one_norm"),
    ],
)
def test_what_does_not_go_together_is_refused(change: dict[str, Any], told: str) -> None:
    with pytest.raises(RequestError, match=told):
        ModelSpec(**SIZES | change)


@pytest.mark.parametrize(
    ("layout", "workload", "told"),
    [
        ({"dp": 2, "ep": 4}, {}, "ep=4 must divide dp=2 and experts=8; 1 and 2"),
        ({}, {"balanced_router": True, "microbatch_size": 1}, None),
        ({"tp": 8}, {}, "tp=8 does not divide 4 heads"),
    ],
)
def test_ep_divides_dp_and_the_experts(layout: dict[str, Any], workload: dict[str, Any], told: str | None) -> None:
    if told is None:
        assert spec(layout, {}, **workload).workload.balanced_router
        return
    with pytest.raises(RequestError, match=told):
        spec(layout, {}, **workload)
