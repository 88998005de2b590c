"""A tape of blocks that come and go: what autograd would allocate and free, told from sizes alone.

The predicted model (`engine.predict.tape.layers` and its neighbours) is written like the model that it predicts, on values that
have a block of memory and no contents. A block goes when nothing refers to it any more, as a tensor's storage does, and what
refers to it is the same as there: the variables of the functions under way, what autograd saved for backward, a gradient on its
way.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from math import inf
from typing import Any, NamedTuple
from weakref import ref

from engine.predict.terms import Factor

Factors = tuple[Factor, ...]


class Record:
    """A block, for the books: what it is, how large, whether it was made in the door, and the actions it came and went in.

    `layered`: whether it was made in a layer.
    """

    __slots__ = ("born", "died", "door", "factors", "layered", "name")

    def __init__(self, name: str, factors: Factors, door: bool, born: str, layered: bool = False) -> None:
        self.name, self.factors, self.door, self.born, self.layered = name, factors, door, born, layered
        self.died = ""


class Note(Record):
    """A word in between, which is no block: something happens to `bucket`, or has happened so many times."""

    __slots__ = ("bucket", "times")

    def __init__(self, name: str, bucket: Any, times: int = 1) -> None:  # very many are made: nothing of a block's is set
        self.name, self.bucket, self.times = name, bucket, times


class Block:
    """A block of memory, for as long as something refers to it."""

    __slots__ = ("__weakref__", "record", "tape")

    def __init__(self, record: Record, tape: Tape) -> None:
        self.record, self.tape = record, tape

    def __del__(self) -> None:
        if self.record is not self.tape.probed:
            self.tape.gone(self.record)


class Segment(NamedTuple):
    """A stretch of the tape within one action: `layer` is −1 outside of the layers."""

    action: str
    layer: int


class Value:
    """A tensor without contents: its block, and the node whose output number `slot` it is; none where no gradient is needed."""

    __slots__ = ("block", "node", "slot")

    def __init__(self, block: Block, node: Node | None = None, slot: int = 0) -> None:
        self.block, self.node, self.slot = block, node, slot


Gradients = list[Block | None]


class Node:
    """One step of backward. `run(gradients, saved)` returns a gradient for each edge."""

    __slots__ = ("edges", "inbox", "kept", "layer", "order", "run", "saved")

    def __init__(self, order: float, layer: int, edges: Sequence[tuple[Node, int] | None]) -> None:
        self.order, self.layer, self.edges = order, layer, tuple(edges)
        self.saved: list[Any] = []  # blocks, and those of a checkpoint as `_Holder`s
        self.kept: Any = None  # what goes with the graph, not with this step
        self.inbox: Gradients = []
        self.run: Callable[[Gradients, list[Block]], Gradients] = _pass_on


def _pass_on(gradients: Gradients, saved: list[Block]) -> Gradients:
    return gradients


class _StopError(Exception):
    """Everything that a checkpoint had saved has been computed again."""


class _Frame:
    """A checkpoint: how to compute again what it did not keep."""

    def __init__(self, again: Callable[[], object]) -> None:
        self.again: Callable[[], object] | None = again
        self.holders = 0
        self.recomputed: dict[int, Block] | None = None


class _Holder:
    """Stands for a block that a checkpoint did not keep."""

    def __init__(self, frame: _Frame) -> None:
        self.frame, self.number = frame, frame.holders
        frame.holders += 1


class Tape:
    def __init__(self) -> None:
        self.parts: list[tuple[Segment, Any]] = []
        self.events: list[tuple[int, Record]] = []
        self.action, self.layer = "", -1
        self.door = False
        self.grad = True  # whether what is done can be gone back through
        self.probed: Record | None = None  # of the block that `owns` asks about
        self._order = 0
        self._packing: _Frame | None = None
        self._repeating: _Frame | None = None
        self._repeated = 0

    def at(self, action: str, layer: int = -1) -> None:
        """What follows happens in that action, in that layer."""
        if (action, layer) != (self.action, self.layer) or not self.parts:
            self.action, self.layer = action, layer
            self.events = []
            self.parts.append((Segment(action, layer), self.events))

    def clear(self) -> None:
        """Forget what was put down, once it has been read."""
        self.parts, self.events = [], []

    def new(self, name: str, *factors: Factor, door: bool = False) -> Block:
        record = Record(name, factors, door, self.action, self.layer >= 0)
        self.events.append((1, record))
        return Block(record, self)

    def like(self, block: Block, name: str = "", door: bool = False) -> Block:
        """One of the same size."""
        return self.new(name or block.record.name, *block.record.factors, door=door)

    def touch(self, name: str, *factors: Factor, door: bool = False) -> None:
        """One that comes and goes at once."""
        record = Record(name, factors, door, self.action, self.layer >= 0)
        record.died = self.action
        self.events += ((1, record), (-1, record))

    def note(self, name: str, bucket: Any) -> None:
        """Put down what happens, where what it does to memory is known only later."""
        self.events.append((0, Note(name, bucket)))

    def gone(self, record: Record) -> None:
        """Put down that nothing refers to a block any more."""
        record.died = self.action
        self.events.append((-1, record))

    def owns(self, gradients: Gradients, place: int) -> bool:
        """Whether nothing but `gradients[place]` refers to that block.

        Found by letting go of it and seeing whether it goes: no count of references is read, which interpreters keep differently.
        If it went, an equal one takes its place.
        """
        block = gradients[place]
        assert block is not None
        record, still_there = block.record, ref(block)
        self.probed, gradients[place] = record, None
        del block
        held = still_there()
        self.probed = None
        gradients[place] = held or Block(record, self)
        return held is None

    def written(self, block: Block) -> None:
        """Something is written into a block that only what writes refers to."""

    # ------------------------------------------------------------------------------------------------------- autograd

    def node(self, *inputs: Value | Node | None) -> Node:
        """A step that will send a gradient to each of `inputs`: a value's node, a parameter's, or none."""
        edges: list[tuple[Node, int] | None] = []
        for value in inputs:
            if isinstance(value, Node):
                edges.append((value, 0))
            else:
                edges.append(None if value is None or value.node is None else (value.node, value.slot))
        self._order += 1
        return Node(self._order, self.layer, edges)

    def leaf(self, run: Callable[[Gradients, list[Block]], Gradients]) -> Node:
        """Where gradients end: of a parameter, or of what a chunk is given. Runs as soon as it can."""
        node = Node(inf, -1, ())
        node.run = run
        return node

    def save(self, node: Node, *blocks: Block) -> None:
        """Keep `blocks` for the node's turn."""
        if not self.grad:
            return
        for block in blocks:
            if self._packing is not None:
                node.saved.append(_Holder(self._packing))
            else:
                node.saved.append(block)
            if self._repeating is not None:
                assert self._repeating.recomputed is not None
                self._repeating.recomputed[self._repeated] = block
                self._repeated += 1
        if self._repeating is not None and self._repeated == self._repeating.holders:
            raise _StopError

    def save_number(self, node: Node, block: Block) -> None:
        """Keep a Python number that became a tensor. A checkpoint keeps it as well: such are not handed to it."""
        if self.grad:
            node.saved.append(block)

    def view(self, x: Value) -> Value:
        """The same block under another shape, by an operation whose backward is a view too."""
        return Value(x.block, self.node(x)) if self.grad else x

    def checkpoint(self, run: Callable[..., Value], *inputs: Value) -> Value:
        """Run, keeping nothing but the inputs; backward runs it again."""
        if not self.grad:
            return run(*inputs)

        def again() -> object:
            return run(*(Value(x.block, x.node, x.slot) for x in inputs))

        self._packing = _Frame(again)
        try:
            return run(*inputs)
        finally:
            self._packing = None

    def _unpack(self, saved: list[Any]) -> list[Block]:
        blocks = []
        while saved:
            thing = saved.pop(0)
            if isinstance(thing, _Holder):
                frame = thing.frame
                if frame.recomputed is None:
                    self._repeat(frame)
                assert frame.recomputed is not None
                thing = frame.recomputed.pop(thing.number)
            blocks.append(thing)
        return blocks

    def _repeat(self, frame: _Frame) -> None:
        assert frame.again is not None
        frame.recomputed = {}
        outer = self._order
        self._repeating, self._repeated = frame, 0
        try:
            frame.again()
        except _StopError:
            pass
        finally:
            self._repeating = None
            self._order = outer

    def backward(self, roots: list[tuple[Node, int, Block | None]]) -> None:
        """Send gradients back from `roots`. Steps run in the reverse of the order that they were made in, as autograd's do."""
        waiting = _dependencies([node for node, _, _ in roots])
        ready: list[tuple[float, int, Node]] = []
        number = 0
        for node, slot, gradient in roots:
            self._deliver(node, slot, [gradient], 0)
        for node in dict.fromkeys(node for node, _, _ in roots):
            if not waiting[node]:
                number += 1
                heapq.heappush(ready, (-node.order, number, node))
        roots.clear()
        del node, gradient
        while ready:
            _, _, node = heapq.heappop(ready)
            if node.layer != self.layer and node.order != inf:
                self.at(self.action, node.layer)
            outputs = self._turn(node)
            for slot, edge in enumerate(node.edges):
                if edge is None:
                    outputs[slot] = None
                    continue
                following, place = edge
                self._deliver(following, place, outputs, slot)
                waiting[following] -= 1
                if not waiting[following]:
                    number += 1
                    heapq.heappush(ready, (-following.order, number, following))

    def _turn(self, node: Node) -> Gradients:
        """Have the node run; the gradients that came go first, then what it had saved."""
        saved = self._unpack(node.saved)
        gradients, node.inbox = node.inbox, []
        outputs = node.run(gradients, saved)
        if outputs is not gradients:
            gradients.clear()
        saved.clear()
        return outputs

    def _deliver(self, node: Node, place: int, outputs: Gradients, slot: int) -> None:
        """Put `outputs[slot]` into the node's inbox; a second one is added to the first, in place if nobody else has that."""
        while len(node.inbox) <= place:
            node.inbox.append(None)
        block, outputs[slot] = outputs[slot], None
        there = node.inbox[place]
        if there is None or block is None:
            node.inbox[place] = there or block
            return
        del there
        owned = self.owns(node.inbox, place)
        there = node.inbox[place]
        assert there is not None
        if owned:
            self.written(there)
        else:
            node.inbox[place] = self.like(there)


def _dependencies(roots: list[Node]) -> dict[Node, int]:
    """How many gradients each node waits for."""
    counts = dict.fromkeys(roots, 0)
    stack = list(counts)
    while stack:
        for edge in stack.pop().edges:
            if edge is not None:
                if edge[0] not in counts:
                    counts[edge[0]] = 0
                    stack.append(edge[0])
                counts[edge[0]] += 1
    return counts
