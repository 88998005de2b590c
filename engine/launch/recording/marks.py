"""Marks that a recorded chunk sets in the profiler's trace: its calls to other ranks, the layer and the module at work."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn
from torch.autograd.profiler import profile, record_function

from engine.launch.recording.profiled import CALL, CONTEXT_STEP, LOSS_CHUNK, MODULE, PRODUCT
from engine.measure.recorder import Recorder, Span, TrafficKey


def mark(kind: str, *what: object) -> Any:
    """What happens inside is marked so."""
    return record_function(kind + " ".join(map(str, what)))


def mark_instant(kind: str, *what: object) -> None:
    with mark(kind, *what):
        pass


class MarkingRecorder(Recorder):
    """Marks every communication call, the chunks of the loss, and the steps of attention over cp ranks."""

    def start_call(self, key: TrafficKey, payload_bytes: int, wire_bytes: int) -> Span:
        mark_instant(CALL, key.axis, key.collective, payload_bytes)
        return super().start_call(key, payload_bytes, wire_bytes)

    def loss_chunk(self, number: int) -> Any:
        return mark(LOSS_CHUNK, number)

    def context_step(self, number: int, of: int) -> Any:
        return mark(CONTEXT_STEP, number, of)

    def product(self, multiply: Callable[[], None], flops: int, *sizes: int) -> None:
        mark_instant(PRODUCT, flops, *sizes)


def path_without_numbers(path: str) -> str:
    """A module's path, which is the same in every layer."""
    return ".".join(part for part in path.split(".") if not part.isdigit())


def mark_modules(chunk: nn.Module) -> None:
    """Have every module inside the chunk mark its forward with its path."""
    for path, module in chunk.named_modules():
        if path:
            module.forward = partial(_inside, module.forward, path_without_numbers(path))


def _inside(forward: Callable[..., Any], path: str, *args: Any, **kwargs: Any) -> Any:
    with mark(MODULE, path):
        return forward(*args, **kwargs)


def traced(run: Callable[[], object], recorder: Recorder) -> list[Any]:
    """The profiler's tree of events of `run()`, with the recorder's actions marked in it."""
    recorder.mark = record_function
    # What `torch.profiler` adds imports `torch._inductor`, which takes most of a second.
    with profile(profile_memory=True, record_shapes=True) as watched:
        run()
    assert watched.kineto_results is not None
    return watched.kineto_results.experimental_event_tree()
