"""The buckets of two layers on four replicas through one step, under each ZeRO stage."""

from __future__ import annotations

from itertools import product

from pages.charts.look import Look
from pages.charts.words import Words
from pages.learn.matrices import owners
from pages.learn.scene import WIDTH, Scene, Thing, box, text

_DP, _LAYERS = 4, (1, 2)
_LEFT, _TOP, _ROW, _SLOT = 92, 30, 26, 23
_KINDS = ("values", "gradients", "optimizer")
_LOCAL = 0.4  # opacity of a gradient that is not averaged yet


class _Buckets:
    """Every shard of every bucket on every replica. A shard of another replica flies from its owner, or to it."""

    def __init__(self, made: Scene, style: Look) -> None:
        self.made, self.step = made, 0
        wide = (WIDTH - _LEFT) / _DP
        self.corner = [_LEFT + replica * wide + (wide - _DP * _SLOT) / 2 for replica in range(_DP)]
        self.things: dict[tuple[str, int, int, int], Thing] = {}
        colours = owners(style)
        for kind, layer, shard, replica in product(_KINDS, _LAYERS, range(_DP), range(_DP)):
            thing = made.add(box(1, 1, _SLOT - 3, _ROW - 6, colours[shard], corner=2))
            self.things[kind, layer, shard, replica] = thing.put(0, *self.place(kind, layer, shard, shard), 0.0)

    def place(self, kind: str, layer: int, shard: int, replica: int) -> tuple[float, float]:
        row = _KINDS.index(kind) * len(_LAYERS) + layer - 1
        return self.corner[replica] + shard * _SLOT, _TOP + row * _ROW

    def tell(self, words: str) -> None:
        self.made.said.append(words)
        self.step = len(self.made.said)

    def have(self, kind: str, layer: int, opacity: float = 1.0, own: bool = False) -> None:
        """Every replica has the whole bucket, or `own`, its shard of it."""
        for shard, replica in product(range(_DP), range(_DP)):
            if shard == replica or not own:
                self._put(kind, layer, shard, replica, replica, opacity)

    def gather(self, kind: str, layer: int) -> None:
        """All-gather: each shard goes from its owner to all."""
        self.have(kind, layer)

    def release(self, kind: str, layer: int, own: bool = False) -> None:
        """Drop what belongs to others, or `own`, all of it."""
        for shard, replica in product(range(_DP), range(_DP)):
            if own or shard != replica:
                self._put(kind, layer, shard, replica, shard if shard != replica else replica, 0.0)

    def scatter(self, kind: str, layer: int) -> None:
        """Reduce-scatter: the shards of all are added up on their owner."""
        for shard, replica in product(range(_DP), range(_DP)):
            self._put(kind, layer, shard, replica, shard, 1.0 if shard == replica else 0.0)

    def _put(self, kind: str, layer: int, shard: int, replica: int, at: int, opacity: float) -> None:
        self.things[kind, layer, shard, replica].put(self.step, *self.place(kind, layer, shard, at), opacity)


def scene(zero: int, style: Look) -> Scene:
    say = style.say
    label = say("The buckets of two layers on four replicas during one step of ZeRO {stage}", stage=zero)
    made = Scene(label, _TOP + len(_KINDS) * len(_LAYERS) * _ROW + 4)
    buckets = _Buckets(made, style)
    named = {"values": say("parameters"), "gradients": say("gradients"), "optimizer": say("optimizer")}
    for kind, layer in product(_KINDS, _LAYERS):
        y = buckets.place(kind, layer, 0, 0)[1]
        made.fixed += text(0, y + _ROW - 11, f"{named[kind]} {layer}", anchor="start", size=14)
    for replica, x in enumerate(buckets.corner):
        made.fixed += text(x + _DP * _SLOT / 2, _TOP - 12, say("replica {index}", index=replica), bold=True)
        for kind, layer in product(_KINDS, _LAYERS):
            y = buckets.place(kind, layer, 0, replica)[1]
            made.fixed += box(x - 1, y - 1, _DP * _SLOT + 1, _ROW - 2, style.faint, corner=3)
    for layer in _LAYERS:
        buckets.have("values", layer, own=zero == 3)
        buckets.have("optimizer", layer, own=zero > 0)
    buckets.tell(_begins(zero, say))
    (_gathered if zero == 3 else _whole)(buckets, zero, say)
    made.still = max(range(len(made.said)), key=lambda step: _seen(made, step))
    return made


def _begins(zero: int, say: Words) -> str:
    return (
        say("Every replica holds all parameters and all of the optimizer’s state of both layers."),
        say("Every replica holds all parameters. Of the optimizer’s state it holds its shard, one colour."),
        say("Every replica holds all parameters. Of the optimizer’s state it holds its shard, one colour."),
        say("Every replica holds its shard of everything, one colour."),
    )[zero]


def _whole(buckets: _Buckets, zero: int, say: Words) -> None:
    """A step of stages 0 to 2: all values are there all the time."""
    for layer in reversed(_LAYERS):
        buckets.have("gradients", layer, _LOCAL)
        buckets.tell(say("Backward of layer {layer}: every replica has its own gradients of it.", layer=layer))
        if zero == 2:
            buckets.scatter("gradients", layer)
            buckets.tell(say("Reduce-scatter: each shard is averaged on its owner. The others drop it."))
    if zero < 2:
        for layer in _LAYERS:
            buckets.scatter("gradients", layer)
        buckets.tell(say("Reduce-scatter: each shard is averaged on its owner."))
    if zero == 0:
        for layer in _LAYERS:
            buckets.gather("gradients", layer)
        buckets.tell(say("All-gather: every replica gets all averages. The two halves together are an all-reduce."))
    for layer in _LAYERS:
        buckets.release("gradients", layer, own=True)
        if zero:
            buckets.release("values", layer)
    if zero == 0:
        buckets.tell(say("Update: every replica updates all parameters. They stay equal."))
        return
    buckets.tell(say("Update: each replica updates the shard whose optimizer state it has. The other parameters are old."))
    for layer in _LAYERS:
        buckets.gather("values", layer)
    buckets.tell(say("All-gather: every replica gets the new parameters of the others."))


def _gathered(buckets: _Buckets, zero: int, say: Words) -> None:
    """A step of stage 3: the values of a layer are there only around its use."""
    for layer in _LAYERS:
        buckets.gather("values", layer)
        buckets.tell(say("All-gather: the parameters of layer {layer} are there for its forward.", layer=layer))
        buckets.release("values", layer)
        buckets.tell(say("Forward of layer {layer} is done. Its gathered parameters are dropped.", layer=layer))
    for layer in reversed(_LAYERS):
        buckets.gather("values", layer)
        buckets.tell(say("Backward needs the parameters of layer {layer} again: a second all-gather.", layer=layer))
        buckets.have("gradients", layer, _LOCAL)
        buckets.tell(say("Backward of layer {layer}: every replica has its own gradients of it.", layer=layer))
        buckets.scatter("gradients", layer)
        buckets.release("values", layer)
        buckets.tell(say("Reduce-scatter: each shard is averaged on its owner. The others drop it, and the parameters."))
    for layer in _LAYERS:
        buckets.release("gradients", layer, own=True)
    buckets.tell(say("Update: each replica updates its shard. Nothing is gathered until the next forward."))


def _seen(made: Scene, step: int) -> float:
    """How much is held at a step: the sum of opacities."""
    total = 0.0
    for thing in made.things:
        total += next((opacity for first, _, _, opacity in reversed(thing.at) if first <= step), 0.0)
    return total
