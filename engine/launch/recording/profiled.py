"""Reads from the profiler's tree what a chunk did with each microbatch: blocks, calls to other ranks, operations.

Kernel workspaces are left out: they depend on the machine.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

from engine.ledger.form import ACCUMULATES, INPUT_GRADIENTS, INPUTS, OUTPUT_GRADIENTS, OUTPUTS, Step
from engine.ledger.form import LOSS_CHUNK as OF_LOSS_CHUNK
from engine.measure.memory import is_operation
from engine.measure.recorder import ACTION_MARK, COMMUNICATION_MARK

# Marks from `record.py`: the current layer and module, what happens to a bucket, a call, the tensors handed on, a chunk of the
# loss, a step of attention over cp ranks, and a product of experts.
LAYER, MODULE, BUCKET, CALL, HANDS, LOSS_CHUNK, CONTEXT_STEP, PRODUCT = (
    f"shardscope.{what} " for what in ("layer", "module", "bucket", "call", "hands", "loss-chunk", "context-step", "product")
)
_NODE = "autograd::engine::evaluate_function: "
_OWN = "shardscope."
_BETWEEN = {
    "recv activation": INPUTS,
    "send activation": OUTPUTS,
    "recv gradient": OUTPUT_GRADIENTS,
    "send gradient": INPUT_GRADIENTS,
}
_PRODUCTS = {
    "aten::mm": (0, 1),
    "aten::addmm": (1, 2),
    "aten::addmm_": (1, 2),
    "aten::bmm": (0, 1),
    "aten::baddbmm": (1, 2),
    "aten::baddbmm_": (1, 2),
}  # which inputs are multiplied
_LINEAR = "mkldnn::_linear_pointwise"  # `engine.parallel.product`; inputs: x, the weight, and the bias if there is one
# Fused attention: at which input the queries are, followed by the keys; and how many products of queries × keys in size it has.
# Forward has q·kᵀ and the product with v. Backward computes q·kᵀ again, and each of both has two gradients. Scores that a causal
# mask hides count like the others.
_FUSED = {
    "aten::_scaled_dot_product_flash_attention_for_cpu": (0, 2),
    "aten::_scaled_dot_product_flash_attention_for_cpu_backward": (1, 5),
}
_NAMES = {"aten::_scaled_dot_product_flash_attention_for_cpu": ("attention", "logsumexp")}  # of an operation's results, in order


class SeenBlock:
    """A block. `before`: how many operations had ended, if it was allocated between operations; else −1."""

    def __init__(
        self, name: str, size: int, born: str, in_communication: bool, layered: bool, before: int, microbatch: SeenMicrobatch
    ) -> None:
        self.name, self.size, self.born, self.in_communication = name, size, born, in_communication
        self.layered, self.before = layered, before
        self.microbatch = microbatch  # in which it was allocated
        self.died = ""
        self.inside = self.lent = False  # inside: allocated and freed by one operation

    @property
    def category(self) -> str:
        """The rule of `engine.measure.memory`, by the actions in which the block is allocated and freed."""
        if self.born == self.died:
            return "communication" if self.in_communication or self.born in (INPUTS, OUTPUT_GRADIENTS) else "temporary"
        if self.born in (INPUTS, "F") and self.died in ("B", "I", "W"):
            return "activations"
        if self.born in ("I", OUTPUT_GRADIENTS) and self.died == "W" and not self.in_communication:
            return "activations"
        return "communication"


class SeenOperation:
    """`flops` of each matrix product in it; bytes of each tensor that it reads and writes."""

    def __init__(self, name: str, flops: list[int], read: list[int], written: list[int], step: Step) -> None:
        self.name, self.flops, self.read, self.written, self.step = name, flops, read, written, step


class SeenMicrobatch:
    """One microbatch. `actions`: the events of each as (layer, kind, what), in order. `shared`: tensors that live on after it."""

    def __init__(self) -> None:
        self.actions: dict[str, list[tuple[int, str, Any]]] = defaultdict(list)
        self.given: list[SeenBlock] = []
        self.shared: tuple[int, ...] = ()
        self.lent: SeenBlock | None = None


class Reading:
    """Walks through the tree in order of time."""

    def __init__(self, before: Mapping[int, int], layers: Mapping[int, int]) -> None:
        """`before`: number of the first graph node after a bucket's layer → that bucket, or −1.

        `layers`: number of a bucket → number of its layer, or −1.
        """
        self.microbatches: dict[int, SeenMicrobatch] = defaultdict(SeenMicrobatch)
        self._bounds, self._layers = sorted(before.items()), layers
        self._live: dict[int, SeenBlock] = {}
        self._ignored_blocks: dict[int, int] = {}  # by address, its size
        self._microbatch, self._action, self._layer = SeenMicrobatch(), "", -1
        self._in_communication = self._ignored = self._repeats = False
        self._within = False  # a node of the graph
        self._module: list[str] = []
        self._modules: dict[int, str] = {}  # number of a node → the module that made it
        self._operation: list[SeenBlock] | None = None  # blocks of the current one
        self._called, self._over = "", 0
        self._step: Step = ""
        self._composite = ""  # the composite operation that runs; some have a kernel of their own, as silu_backward

    def read(self, tree: Sequence[Any]) -> dict[int, SeenMicrobatch]:
        """By microbatch."""
        for event in tree:
            self._one(event)
        return self.microbatches

    def _one(self, event: Any) -> None:
        name: str = event.name
        if name == "[memory]":
            self._memory(event.extra_fields.alloc_size, event.extra_fields.ptr)
        elif name.startswith(_OWN):
            self._mark(name, event)
        elif name.startswith(_NODE):
            self._node(event)
        elif (name.startswith("aten::") or name == _LINEAR) and self._operation is None and is_operation(name):
            self._do(name, event)
        else:
            self._made_by_module(event)
            composite = self._composite
            if name.startswith("aten::") and self._operation is None:
                self._composite = name.removeprefix("aten::")
            self._inside(event)
            self._composite = composite

    def _inside(self, event: Any) -> None:
        for child in event.children:
            self._one(child)

    # ---------------------------------------------------------------------------------------------------------- the current place

    def _mark(self, name: str, event: Any) -> None:
        kind = name[: name.index(" ") + 1]
        what = name[len(kind) :].split()
        if kind == LAYER:
            self._layer = self._layers.get(int(what[0]), -1)
        elif kind == CALL and not self._ignored:
            self._put("call", ("".join(self._module[-1:]), what[0], what[1], int(what[2]), self._step))
        elif kind == HANDS and self._action == OUTPUTS:
            self._hand([int(where) for where in what])
        elif kind == BUCKET:
            self._bucket(what[0], int(what[1]), event)
        elif kind == PRODUCT and not self._ignored:
            flops, *read, written = map(int, what)
            self._put("run", SeenOperation(": ".join([*self._module[-1:], "grouped_mm"]), [flops], read, [written], self._step))
        elif kind == LOSS_CHUNK:
            self._loss_chunk(int(what[0]), event)
        elif kind == CONTEXT_STEP:
            self._context_step(int(what[0]), int(what[1]), event)
        else:
            outer = self._in_communication, len(self._module)
            if kind == ACTION_MARK:
                self._begin(what)
            elif kind == COMMUNICATION_MARK:
                self._in_communication = True
            elif kind == MODULE:
                self._module.append(what[0])
            self._inside(event)
            self._in_communication = outer[0]
            del self._module[outer[1] :]

    def _begin(self, what: list[str]) -> None:
        kind = " ".join(what[1:3]) if what[1] in ("recv", "send") else what[1]
        self._action = _BETWEEN.get(kind, kind)
        # Reductions belong to no microbatch.
        self._microbatch = self.microbatches[int(what[-1])] if "microbatch" in what else SeenMicrobatch()
        self._layer = -1

    def _bucket(self, what: str, number: int, event: Any) -> None:
        """What data parallelism does with a bucket. What it allocates is left out: a ledger's reader computes it."""
        takes = what == str(ACCUMULATES)
        if not takes:
            self._put("bucket", (int(what), number))
        before, self._ignored = self._ignored, True
        self._inside(event)
        self._ignored = before
        if takes:  # after the gradient was freed
            self._put("bucket", (int(what), number))

    def _loss_chunk(self, number: int, event: Any) -> None:
        """A chunk of the loss. The first one stands for all: the others are left out. No block outlives its chunk."""
        outer, live = (self._layer, self._ignored), set(self._live)
        self._layer, self._ignored = OF_LOSS_CHUNK, number > 0
        self._ignored_blocks.clear()
        self._inside(event)
        self._layer, self._ignored = outer
        assert set(self._live) == live and not self._ignored_blocks, "a chunk of the loss leaves no block behind, and takes none"

    def _context_step(self, number: int, of: int, event: Any) -> None:
        """A step of attention over `of` cp ranks. The second one stands for all but the first and the last.

        Those that are left out may free blocks that another step left, and leave as many and as large ones.
        """
        self._step = "" if number == 0 else "last" if number == of - 1 else "middle"
        if number < 2 or number == of - 1:
            self._inside(event)
        else:
            before, count = dict(self._live), len(self._live)
            self._ignored = self._repeats = True
            self._ignored_blocks.clear()
            self._inside(event)
            self._ignored = self._repeats = False
            self._live |= {where: self._take(size, before) for where, size in self._ignored_blocks.items()}
            assert len(self._live) == count, "a step leaves as many blocks as it takes"
            self._ignored_blocks.clear()
        self._step = ""

    def _take(self, size: int, before: dict[int, SeenBlock]) -> SeenBlock:
        """Of the blocks that are gone, one of that size."""
        where = next(place for place, block in before.items() if place not in self._live and block.size == size)
        return before.pop(where)

    def _hand(self, addresses: list[int]) -> None:
        shared = [i for i, where in enumerate(addresses) if where in self._live]
        self._microbatch.shared = tuple(shared)
        if shared:
            self._microbatch.lent = self._live[addresses[shared[0]]]
            self._microbatch.lent.lent = True

    def _node(self, event: Any) -> None:
        """A node of the graph, in backward. It belongs to the layer that made it, a parameter's node to the current layer.

        A node of a graph that another node makes and differentiates belongs to that one's layer.
        """
        number, outer, within = event.extra_fields.sequence_number, len(self._module), self._within
        if number >= 0:
            behind = next((bucket for first, bucket in self._bounds if number < first), None)
            if behind is not None and not within:
                self._layer = self._layers.get(behind, -1)
            self._module += [self._modules[number]] if number in self._modules else []
        self._within = True
        self._inside(event)
        self._within = within
        del self._module[outer:]

    def _made_by_module(self, event: Any) -> None:
        number = getattr(event.extra_fields, "sequence_number", -1)
        if number >= 0 and self._module:
            self._modules[number] = self._module[-1]

    # -------------------------------------------------------------------------------------------------------- what happens

    def _do(self, name: str, event: Any) -> None:
        self._made_by_module(event)
        self._operation, self._called = [], name.removeprefix("aten::")
        if name == _LINEAR:  # it goes by the name that the product has where it is MKL's, which depends on its size
            self._called = "addmm" if hasattr(event.extra_fields.inputs[2], "sizes") else "mm"
        self._inside(event)
        made, self._operation = self._operation, None
        self._over += 1
        for block in made:
            block.inside = bool(block.died)
        for block, called in zip(made, _NAMES.get(name, ()), strict=False):
            block.name = ": ".join([*self._module[-1:], called])
        if not self._ignored and not self._in_communication:
            self._operate(name, event, [block.size for block in made if not block.inside])

    def _operate(self, name: str, event: Any, made: list[int]) -> None:
        """Add an operation that launches a kernel: no view, and no bare allocation."""
        inputs = [one for one in event.extra_fields.inputs if hasattr(one, "sizes")]
        if name == _LINEAR:
            inputs = inputs[2:] + inputs[:2]  # the order of addmm
        if "empty" in name or not (made or name.endswith("_")):  # which writes to its first input
            return
        sizes = [prod(one.sizes) * one.dtype.itemsize for one in inputs]
        flops = []
        if name in _PRODUCTS:
            one, other = (event.extra_fields.inputs[i].sizes for i in _PRODUCTS[name])
            flops = [2 * prod(one) * other[-1]]
        elif name == _LINEAR:
            flops = [2 * prod(inputs[-2].sizes) * inputs[-1].sizes[0]]
        elif name in _FUSED:
            first, products = _FUSED[name]
            query, key = (event.extra_fields.inputs[first + i].sizes for i in (0, 1))
            flops = [2 * prod(query) * key[-2]] * products
        name = ": ".join([*self._module[-1:], self._called])
        self._put("run", SeenOperation(name, flops, sizes, made or sizes[:1], self._step))

    def _memory(self, size: int, where: int) -> None:
        if size > 0 and self._ignored:
            self._ignored_blocks[where] = size
        elif size > 0:
            alone = self._operation is None and not self._composite
            between = self._action in (INPUTS, OUTPUT_GRADIENTS)
            called = "number" if alone else self._called if self._operation is not None else self._composite
            name = "message" if between else ": ".join([*self._module[-1:], called])
            before = self._over if alone and not self._in_communication and not between else -1
            block = SeenBlock(name, size, self._action, self._in_communication, self._layer >= 0, before, self._microbatch)
            self._live[where] = block
            if self._operation is not None:
                self._operation.append(block)
            if self._action == INPUTS:
                self._microbatch.given.append(block)
            self._put("born", block)
        elif where in self._ignored_blocks:
            del self._ignored_blocks[where]
        elif where in self._live:
            block = self._live.pop(where)
            if self._repeats:
                return
            block.died = self._action
            block.inside = block.before >= 0 and block.before == self._over - 1
            if block.microbatch is self._microbatch:  # the token that one pass chose is freed in the next
                self._put("gone", block)

    def _put(self, kind: str, what: Any) -> None:
        self._microbatch.actions[self._action].append((self._layer, kind, what))
