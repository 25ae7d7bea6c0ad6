"""A step of fixed shapes, captured in a CUDA graph at its first call and replayed from then on.

A decode step is many short kernels, which the host launches more slowly than a GPU runs them.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from nsa_models.once import once
from nsa_models.shortage import is_out_of_memory, one_kind_of_shortage

# cuBLAS picks and allocates at its first call, Triton compiles at its first: both before the capture.
_WARM_UPS = 1


class ReplayedStep:
    """Calls a function of no arguments whose tensors never move.

    What warming up and capturing takes is counted by `nsa_models.once`.
    """

    def __init__(self, step: Callable[[], Tensor], *, state: Sequence[Tensor], enabled: bool) -> None:
        """Nothing is captured yet.

        Args:
            step: Reads and writes tensors on the device, and tells the host nothing.
            state: What it counts on in each call. A warm-up's other writes go where the first real step
                writes again.
            enabled: False: the function is called as it is.
        """
        self._step, self._state, self._enabled = step, state, enabled
        self._graph: torch.cuda.CUDAGraph | None = None
        self._result: Tensor | None = None

    @property
    def captured(self) -> bool:
        """Whether calls are replayed."""
        return self._graph is not None

    def forget(self) -> None:
        """Capture anew at the next call: something has moved."""
        self._graph = self._result = None

    def __call__(self) -> Tensor:
        """The step's result, good until the next call.

        Raises:
            torch.OutOfMemoryError: A lack of memory, whoever met it.
        """
        with one_kind_of_shortage():
            if self._enabled and self._graph is None:
                with once(self._state[0].device):
                    self._capture()
            if self._graph is None:
                return self._step()
            self._graph.replay()
        assert self._result is not None  # made by the capture
        return self._result

    def _capture(self) -> None:
        """Record the step, leaving its state as it was."""
        before = [x.clone() for x in self._state]

        def put_back() -> None:
            for x, old in zip(self._state, before, strict=True):
                x.copy_(old)

        graph = torch.cuda.CUDAGraph()
        with torch.cuda.device(self._state[0].device):
            stream, current = torch.cuda.Stream(), torch.cuda.current_stream()
            stream.wait_stream(current)
            with torch.cuda.stream(stream):
                for _ in range(_WARM_UPS):
                    self._step()
                    put_back()
            current.wait_stream(stream)
            try:
                # Kernels are recorded and don't run. Other threads may go on using the device meanwhile.
                with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
                    self._result = self._step()
            except RuntimeError as error:
                if is_out_of_memory(error):
                    raise
                reason = (str(error).splitlines() or [type(error).__name__])[0]
                warnings.warn(
                    f"the decode step could not be captured in a CUDA graph and runs without: {reason}",
                    RuntimeWarning,
                    stacklevel=2,
                )
                self._enabled, self._result = False, None
                return
        self._graph = graph
