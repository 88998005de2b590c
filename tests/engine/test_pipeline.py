"""The executor on one rank, where two chunks pass tensors to each other directly, and training from end to end."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from engine.parallel.comm import Comm
from engine.parallel.data import DataParallel
from engine.parallel.pipeline import Executor, TensorShape
from engine.parallel.tensor import TensorParallel
from engine.schedule import Action, Schedule
from engine.spec import RunSpec, WorkloadSpec
from engine.tables import RunResult
from tests.engine.test_data_parallel import Linear
from tests.runs import Runs, small

pytestmark = pytest.mark.usefixtures("one_thread")

MICROBATCHES = 3


class Half(nn.Module):
    """A chunk of one layer. The first makes its input, the last computes a loss, in forward or in backward."""

    def __init__(self, first: bool, loss_in_backward: bool) -> None:
        super().__init__()
        self.first, self.layer = first, Linear(4, 4, seed=int(first))
        self.loss_in_backward = not first and loss_in_backward

    def forward(self, inputs: tuple[Tensor, ...], microbatch: int) -> tuple[Tensor, ...]:
        x = data_of(microbatch) if self.first else inputs[0]
        y = self.layer(x).tanh()
        return (y,) if self.first or self.loss_in_backward else (self.loss((y,), microbatch),)

    def loss(self, outputs: tuple[Tensor, ...], microbatch: int) -> Tensor:
        return outputs[0].square().mean()


class NoUpdate:
    """An optimizer that leaves the parameters as they are."""

    def reduce_tied_gradients(self) -> None: ...

    def step(self, loss: Tensor | None) -> None: ...


def data_of(microbatch: int) -> Tensor:
    return torch.randn(2, 4, generator=torch.Generator().manual_seed(microbatch))


def actions(order: str) -> tuple[Action, ...]:
    """ "F0.1" is F of microbatch 1 through chunk 0."""
    return tuple(Action(a[0], int(a[1]), int(a[3])) for a in order.split())  # type: ignore[arg-type]


BOTH_CHUNKS_ALTERNATING = " ".join(f"F0.{m} F1.{m} B1.{m} B0.{m}" for m in range(MICROBATCHES))
ALL_FORWARD_FIRST = " ".join(
    [f"F{c}.{m}" for c in (0, 1) for m in range(MICROBATCHES)] + [f"B{c}.{m}" for c in (1, 0) for m in (2, 0, 1)]
)


def executor(order: str, loss_in_backward: bool = False) -> tuple[Executor, list[str], nn.ModuleList]:
    """One rank with both chunks. The list gets the status of each action."""
    comm, said = Comm.alone(torch.device("cpu")), cast(list[str], [])
    halves = nn.ModuleList([Half(True, loss_in_backward), Half(False, loss_in_backward)])
    data = DataParallel(TensorParallel(comm), 0, torch.float32, MICROBATCHES)
    for c, half in enumerate(halves):
        data.add_chunk(c, [half.layer])  # type: ignore[list-item]
    plan = Schedule("naive", MICROBATCHES, (0, 0), ((*actions(order), Action("step")),))
    chunks: Any = dict(enumerate(halves))
    inputs = [[], [TensorShape((2, 4), torch.float32)]]
    return Executor(plan, chunks, inputs, data, NoUpdate(), said.append), said, halves


@pytest.mark.parametrize("loss_in_backward", [False, True], ids=["loss in F", "loss in B"])
@pytest.mark.parametrize("order", [BOTH_CHUNKS_ALTERNATING, ALL_FORWARD_FIRST], ids=["alternating", "all forward first"])
def test_any_order_gives_the_gradient_of_the_mean_loss(order: str, loss_in_backward: bool) -> None:
    run, said, halves = executor(order, loss_in_backward)
    run.run("step 7")
    whole = nn.ModuleList([Half(True, False), Half(False, False)])
    loss = torch.stack([whole[1](whole[0]((), m), m)[0] for m in range(MICROBATCHES)]).mean()
    loss.backward()
    torch.testing.assert_close(run.loss, loss.detach())
    for parameter, other in zip(halves.parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, other.grad)
    assert said[0] == "step 7: F chunk 0 microbatch 0"
    assert said[-1] == "step 7: step"
    assert len(said) == 4 * MICROBATCHES + 1


def test_a_step_leaves_nothing_behind() -> None:
    """After a step there is no graph, no input and no message, and the next step gives the same."""
    run, _, halves = executor(ALL_FORWARD_FIRST)
    run.run("step 1")
    first = [p.grad.clone() for p in halves.parameters() if p.grad is not None]
    assert not any((run._inputs, run._roots, run._received, run._to_send, run._sent))
    run.run("step 2")
    torch.testing.assert_close([p.grad for p in halves.parameters()], first)
    assert float(run.loss) > 0


def test_a_schedule_that_leaves_tensors_is_an_error() -> None:
    run, _, _ = executor(BOTH_CHUNKS_ALTERNATING.removesuffix(" B0.2"))
    with pytest.raises(AssertionError, match="a step leaves nothing behind"):
        run.run("step 1")


def test_the_output_does_not_outlive_its_forward() -> None:
    """Between F and B a stage holds the graph and its saved tensors, but not its output."""
    run, _, _ = executor(ALL_FORWARD_FIRST)
    run._forward(Action("F", 0, 0))
    run._forward(Action("F", 1, 0))
    (edge,) = run._roots[1, 0]
    assert not isinstance(edge, Tensor)


# ------------------------------------------------------------------------------------------------- training, end to end


def losses(result: RunResult) -> list[float]:
    return list(result.tables["steps"]["loss"])


def test_the_loss_falls_visibly_in_a_default_run(runs: Runs) -> None:
    """With default settings, the loss begins at that of guessing and ends well below. Each Python version has another text."""
    result = runs.result(RunSpec())
    fallen = losses(result)
    assert len(fallen) == WorkloadSpec().steps == 20
    assert fallen[0] == pytest.approx(math.log(256), rel=0.05)
    assert fallen[-1] < 0.75 * fallen[0]
    assert result.summary["loss_first"] == fallen[0]
    assert result.summary["loss_last"] == fallen[-1]
    assert (result.tables["steps"]["grad_norm"] > 0).all()
    assert (result.tables["steps"]["step_ns"] > 0).all()
    assert set(result.tables["steps"]["tokens"]) == {4 * 2 * 64}


def test_replicas_read_different_data(runs: Runs) -> None:
    """Two replicas with one microbatch each are one replica with two: same data, in the same steps."""
    two, one = runs.result(small("dp2", microbatches=1, steps=3)), runs.result(small("dp1", microbatches=2, steps=3))
    assert losses(two) == pytest.approx(losses(one), abs=1e-5)
    assert list(two.tables["steps"]["tokens"]) == list(one.tables["steps"]["tokens"])


def test_the_users_text_is_trained_on(runs: Runs, tmp_path: Path) -> None:
    """Two alternating letters are learned fast. With the default text, the same run has a much higher loss."""
    text = tmp_path / "two letters.txt"
    text.write_text("ab" * 500, encoding="utf-8")
    own = RunSpec(workload=WorkloadSpec(text=str(text)))
    assert losses(runs.result(own))[-1] < 1 < 3 < losses(runs.result(RunSpec()))[-1]


def test_the_seed_determines_weights_and_data(runs: Runs) -> None:
    first, again, other = runs.result(small("dp2", seed=1)), runs.fresh(small("dp2", seed=1)), runs.result(small("dp2", seed=2))
    assert losses(first) == losses(again)
    assert losses(first) != losses(other)
