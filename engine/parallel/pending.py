"""A communication call in progress, and the error that says that another rank is gone."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from engine.measure.recorder import Recorder, Span
from engine.parallel.transport import Works


class CommError(RuntimeError):
    """A collective or transfer failed: another rank was gone first."""


class Pending:
    """A call in progress. It must be waited for: gloo cancels a transfer whose handle is freed."""

    def __init__(self, works: Works, tensors: tuple[torch.Tensor, ...], span: Span, recorder: Recorder) -> None:
        """`tensors` are kept until the call is complete; see `unowned_view`."""
        self._works, self._tensors, self._span, self._recorder = works, tensors, span, recorder
        self.afterwards: Callable[[], object] | None = None  # what is left to do when the works are complete

    def wait(self) -> None:
        began = time.perf_counter_ns()
        wait_for(self._works)
        if self.afterwards is not None:
            with self._recorder.communication_region(self._span.kind):
                self.afterwards()
        self._recorder.close(self._span)
        # On a GPU a wait returns at once, and the device waits later: nobody knows how long.
        on_cpu = all(tensor.device.type == "cpu" for tensor in self._tensors)
        self._span.exposed_ns = self._span.exposed_ns + self._span.end_ns - began if on_cpu else -1
        self._tensors, self.afterwards = (), None


@contextmanager
def of_others() -> Iterator[None]:
    """torch raises `RuntimeError` from a call if another rank is gone. Only calls belong inside: other errors are this rank's."""
    try:
        yield
    except RuntimeError as error:
        raise CommError(str(error)) from error


def wait_for(works: Works) -> None:
    with of_others():
        for work in works:
            assert work is not None, "this rank is in every group it calls"
            work.wait()
