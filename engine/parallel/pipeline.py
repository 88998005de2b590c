"""The executor: runs the actions of a schedule on one rank, with one handler and one span for each action.

Of the model it knows only that a chunk maps inputs to outputs, and of the schedule only its list of actions.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge

from engine.parallel.comm import Comm
from engine.parallel.data import DataParallel
from engine.parallel.gradients import DeferredWeightGradients
from engine.parallel.pending import Pending
from engine.schedule import Action, Flow, Kind, Schedule

Boundary = tuple[Tensor, ...]  # the tensors that one chunk passes to the next
Message = list[tuple[Pending, Tensor]]  # a boundary that is being sent, tensor by tensor


class TensorShape(NamedTuple):
    shape: tuple[int, ...]
    dtype: torch.dtype


class PipelineChunk(Protocol):
    """Contiguous layers of the model, as the executor sees them."""

    def forward(self, inputs: Boundary, microbatch: int) -> Boundary:
        """The chunk's outputs for one microbatch; the last chunk's is the mean loss, a scalar.

        `inputs` are the outputs of the previous chunk. The first chunk has none: it reads the tokens itself.
        """
        ...

    @property
    def loss_in_backward(self) -> bool:
        """Whether this is the last chunk, and its `forward` ends before the loss."""
        ...

    def loss(self, outputs: Boundary, microbatch: int) -> Tensor:
        """The mean loss, a scalar, of what such a `forward` gave. It is called in B or I, just before backward.

        It also computes the gradient of the head's weights. If it ran in forward, GPipe would hold one such gradient for each
        microbatch in flight.
        """
        ...


class ParameterUpdate(Protocol):
    """The update of this rank's parameters, as the executor sees it. See `engine.parallel.update.DistributedOptimizer`."""

    def reduce_tied_gradients(self) -> None: ...

    def step(self, loss: Tensor | None) -> None: ...


class Executor:
    """Runs the actions of one pipeline stage. `loss` is this replica's share of the mean loss, on the last stage."""

    def __init__(
        self,
        schedule: Schedule,
        chunks: Mapping[int, PipelineChunk],
        inputs: Sequence[Sequence[TensorShape]],
        data: DataParallel,
        optimizer: ParameterUpdate,
        set_status: Callable[[str], None],
    ) -> None:
        """`chunks`: those of this stage, by number. `inputs[c]`: the tensors that chunk c takes, of all chunks of the model.

        `set_status` is called with each action before it runs.
        """
        self.chunks, self.inputs, self.data, self.optimizer, self.set_status = chunks, inputs, data, optimizer, set_status
        self.comm: Comm = data.comm
        self.actions = schedule.stages[self.comm.at.pp]
        self.placement, self.microbatches, self.max_sends = schedule.placement, schedule.microbatches, schedule.held
        self.has_last = schedule.placement[-1] == self.comm.at.pp
        self.loss_scale = 1.0 / (schedule.microbatches * self.comm.mesh.replicas)
        self.loss = torch.zeros((), device=self.comm.device)
        self._inputs: dict[tuple[int, int], Boundary] = {}
        self._roots: dict[tuple[int, int], tuple[GradientEdge, ...]] = {}
        # Outputs of the last chunk whose loss is computed in backward, by microbatch.
        self._without_loss: dict[int, Boundary] = {}
        self._received: dict[tuple[Flow, int, int], Boundary] = {}  # received, for the chunk of the key
        self._to_send: dict[tuple[Flow, int, int], Boundary] = {}  # waiting to be sent by the chunk of the key
        self._sent: dict[tuple[Flow, int], deque[Message]] = {}  # sends in progress, by flow and stage
        self._deferred: dict[tuple[int, int], DeferredWeightGradients] = {}  # weight gradients that I left for W
        do: dict[Kind, Callable[[Action], None]] = {
            "F": self._forward,
            "B": self._backward,
            "I": self._backward_of_inputs,
            "W": self._backward_of_weights,
            "send": self._send,
            "recv": self._receive,
            "reduce": lambda action: data.finish_reductions(action.chunk),
            "tie": lambda action: optimizer.reduce_tied_gradients(),
            "step": self._step,
            "gather": lambda action: data.all_gather_values(),
        }
        self._prepared = [(action, str(action), _phase(action), do[action.kind]) for action in self.actions]

    def run(self, step: str) -> None:
        """Run one training step: every action of this stage's list. `step` names it in the status, for example "step 3"."""
        self.loss.zero_()
        self.data.begin_step()
        for action, name, phase, do in self._prepared:
            self.set_status(f"{step}: {name}")
            with self.comm.recorder.action(action, phase):
                do(action)
        left = (self._inputs, self._roots, self._received, self._to_send, self._sent, self._deferred, self._without_loss)
        assert not any(left), "a step leaves nothing behind"

    def _forward(self, action: Action) -> None:
        key = (action.chunk, action.microbatch)
        inputs = self._received.pop(("activation", *key), ())
        chunk = self.chunks[action.chunk]
        outputs = chunk.forward(inputs, action.microbatch)
        self._inputs[key] = inputs
        if chunk.loss_in_backward:
            self._without_loss[action.microbatch] = outputs
            return
        if action.chunk == len(self.placement) - 1:
            outputs = (self._scaled(outputs[0]),)
        # Backward needs the graph, not the values. Without a reference they are freed after they are sent.
        self._roots[key] = tuple(get_gradient_edge(t) for t in outputs)
        if action.chunk < len(self.placement) - 1:
            self._pass_on("activation", action.chunk, action.chunk + 1, action.microbatch, tuple(t.detach() for t in outputs))

    def _scaled(self, loss: Tensor) -> Tensor:
        """The loss, divided before backward: the sum over microbatches and replicas is then the mean over all of them."""
        scaled = loss * self.loss_scale
        self.loss += scaled.detach()
        return scaled

    def _compute_loss(self, action: Action) -> None:
        """The loss of a last chunk whose forward ended before it."""
        outputs = self._without_loss.pop(action.microbatch)
        loss = self.chunks[action.chunk].loss(outputs, action.microbatch)
        self._roots[action.chunk, action.microbatch] = (get_gradient_edge(self._scaled(loss)),)

    def _backward(self, action: Action) -> None:
        key = (action.chunk, action.microbatch)
        if self.chunks[action.chunk].loss_in_backward:
            self._compute_loss(action)
        last = action.chunk == len(self.placement) - 1
        gradients = None if last else self._received.pop(("gradient", *key))
        roots, inputs = self._roots.pop(key), self._inputs.pop(key)
        if last:
            gradients = (torch.ones((), device=self.comm.device),)
        torch.autograd.backward(roots, gradients)
        if inputs:
            outgoing = tuple(t.grad for t in inputs if t.grad is not None)
            assert len(outgoing) == len(inputs), "a chunk uses all its inputs"
            self._pass_on("gradient", action.chunk, action.chunk - 1, action.microbatch, outgoing)

    def _backward_of_inputs(self, action: Action) -> None:
        """Backward without the weight gradients of linear layers. Other parameters get their gradients."""
        with self.data.tp.gradients.collect() as deferred:
            self._backward(action)
        self._deferred[action.chunk, action.microbatch] = deferred

    @torch.no_grad()
    def _backward_of_weights(self, action: Action) -> None:
        deferred = self._deferred.pop((action.chunk, action.microbatch))
        for weight in list(deferred):
            deferred.pop(weight)()  # pop: so that its tensors are freed

    def _pass_on(self, flow: Flow, chunk: int, to: int, microbatch: int, tensors: Boundary) -> None:
        """Pass tensors to a chunk on this rank directly, or keep them for the send that follows in the list."""
        if self.placement[to] != self.placement[chunk]:
            self._to_send[flow, chunk, microbatch] = tensors
        else:
            self._receive_boundary(flow, to, microbatch, tensors)

    def _receive_boundary(self, flow: Flow, chunk: int, microbatch: int, tensors: Boundary) -> None:
        if flow == "activation":
            tensors = tuple(t.requires_grad_() for t in tensors)
        self._received[flow, chunk, microbatch] = tensors

    def _send(self, action: Action) -> None:
        sent = self._sent.setdefault((action.flow, action.peer), deque())
        if len(sent) == self.max_sends:  # the most sends in progress to a neighbour; `replay` has the same rule
            _wait(sent.popleft())
        tensors = self._to_send.pop((action.flow, action.chunk, action.microbatch))
        to = action.chunk + (1 if action.flow == "activation" else -1)
        sent.append(
            [
                (self.comm.send(t.contiguous(), action.flow, action.peer, self._tag(action.flow, to, action.microbatch, part)), t)
                for part, t in enumerate(tensors)
            ]
        )

    def _receive(self, action: Action) -> None:
        expected = self.inputs[action.chunk if action.flow == "activation" else action.chunk + 1]
        tensors = tuple(
            self.comm.receive(
                torch.empty(shape, dtype=dtype, device=self.comm.device),
                action.flow,
                action.peer,
                self._tag(action.flow, action.chunk, action.microbatch, part),
            )
            for part, (shape, dtype) in enumerate(expected)
        )
        self._receive_boundary(action.flow, action.chunk, action.microbatch, tensors)

    def _tag(self, flow: Flow, chunk: int, microbatch: int, part: int) -> int:
        """The same number on both ends: a message is named by the chunk that receives it."""
        chunks = len(self.placement)
        return ((2 * (part * chunks + chunk)) + (flow == "gradient")) * self.microbatches + microbatch

    def _step(self, action: Action) -> None:
        self._wait_for_all()
        self.optimizer.step(self.loss if self.has_last else None)

    def _wait_for_all(self) -> None:
        """A method of its own, so that no local variable keeps a message alive during the optimizer's step."""
        for messages in self._sent.values():
            for message in messages:
                _wait(message)
        self._sent.clear()


def _wait(message: Message) -> None:
    for pending, _ in message:
        pending.wait()


def _phase(action: Action) -> str:
    """The purpose under which communication during this action is counted."""
    if action.kind in ("send", "recv"):
        return "forward" if action.flow == "activation" else "backward"
    return {"F": "forward", "B": "backward", "I": "backward", "W": "backward"}.get(action.kind, action.kind)
