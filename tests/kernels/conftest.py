"""The matrix of backends that every attention test runs over, and random inputs for them.

A backend that can run here is tested by being in `available_backends()`; the paths of the torch backend are
forced one by one, in pieces small enough for every seam to be crossed.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from functools import partial

import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor

import nsa_kernels.torch_ as torch_backend
from nsa_kernels import BlockGeometry, available_backends, compress_mean, nsa_attention, num_blocks
from nsa_kernels.torch_ import chunked, masked

EVERYTHING = 1 << 60


@dataclass(frozen=True)
class Inputs:
    """Arguments of `nsa_attention`: q, the six caches and the gates in order, and the keywords."""

    tensors: tuple[Tensor, ...]
    geometry: BlockGeometry
    start: int | Tensor = 0
    lengths: Tensor | None = None

    def to(self, device: str) -> "Inputs":
        """The same inputs on a device."""

        def move(x):
            return x.to(device) if isinstance(x, Tensor) else x

        return replace(
            self, tensors=tuple(map(move, self.tensors)), start=move(self.start), lengths=move(self.lengths)
        )

    def run(self, attention: Callable, **kwargs):
        return attention(
            *self.tensors,
            geometry=self.geometry,
            start=self.start,
            lengths=self.lengths,
            return_blocks=True,
            **kwargs,
        )

    def run_with_gradients(self, attention: Callable, seed: int = 0):
        """Output, blocks, and the gradient of a random projection of the output for each tensor."""
        leaves = tuple(x.detach().clone().requires_grad_() for x in self.tensors)
        out, blocks = replace(self, tensors=leaves).run(attention)
        weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(seed)).to(out)
        if out.requires_grad:  # it does not where every query is padding
            out.mul(weight).sum().backward()
        return out, blocks, [torch.zeros_like(x) if x.grad is None else x.grad for x in leaves]


@pytest.fixture(scope="session")
def make_inputs() -> Callable[..., Inputs]:
    """Random inputs; the compressed keys are means of the selected branch's."""

    def make(
        geometry: BlockGeometry,
        *,
        queries: int,
        start: int | list[int] = 0,
        lengths: list[int] | None = None,
        batch: int = 2,
        kv_heads: int = 2,
        group: int = 2,
        dim: int = 4,
        value_dim: int | None = None,
        shared: bool = False,
        dtype: torch.dtype = torch.float64,
        seed: int = 0,
    ) -> Inputs:
        generator = torch.Generator().manual_seed(seed)

        def random(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, dtype=dtype)

        size = queries + (start if isinstance(start, int) else max(start))
        k_slc, k_win = random(batch, size, kv_heads, dim), random(batch, size, kv_heads, dim)
        v_slc = random(batch, size, kv_heads, value_dim or dim)
        v_win = random(batch, size, kv_heads, value_dim or dim)
        if shared:
            k_win, v_win = k_slc, v_slc
        tensors = (
            2 * random(batch, queries, kv_heads * group, dim),
            compress_mean(k_slc, geometry) * geometry.block**0.5,  # so that scores differ as for plain keys
            compress_mean(v_slc, geometry),
            k_slc,
            v_slc,
            k_win,
            v_win,
            random(batch, queries, kv_heads * group, 3).sigmoid(),
        )
        assert tensors[1].shape[1] == num_blocks(size, geometry)
        return Inputs(
            tensors,
            geometry,
            start if isinstance(start, int) else torch.tensor(start),
            None if lengths is None else torch.tensor(lengths),
        )

    return make


@contextmanager
def _torch_path(masked_keys: int) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch_backend, "MASKED_KEYS_CPU", masked_keys)
        patch.setattr(masked, "RUN", 16)
        patch.setattr(chunked, "CPU_ELEMENTS", 2000)
        patch.setattr(chunked, "SHORT_RUN", 3)
        patch.setattr(chunked, "TRAIN_RUN", 7)
        yield


TORCH_PATHS = {"torch-masked": EVERYTHING, "torch-mixed": 24, "torch-chunked": 0}
"""Keys up to which masks are used; rows that start at different positions are always chunked."""


# The triton backend is slow in the interpreter and computes in float32: its tests are its own.
@pytest.fixture(
    scope="module", params=[*TORCH_PATHS, *(name for name in available_backends() if name != "triton")]
)
def attention(request: pytest.FixtureRequest) -> Iterator[Callable]:
    """`nsa_attention` with each backend, and each path of the torch backend, in turn."""
    name = request.param
    if name in TORCH_PATHS:
        with _torch_path(TORCH_PATHS[name]):
            yield partial(nsa_attention, backend="torch")
    else:
        yield partial(nsa_attention, backend=name)


@pytest.fixture(scope="session")
def oracle() -> Callable:
    return partial(nsa_attention, backend="reference")


@pytest.fixture(scope="session")
def small() -> BlockGeometry:
    """A geometry in which 50 tokens have to choose."""
    return BlockGeometry(block=8, stride=4, select_block=8, select_count=4, window=12)


@pytest.fixture(scope="session")
def shapes() -> Callable[..., st.SearchStrategy[tuple[BlockGeometry, dict]]]:
    """Makes a strategy for geometries and arguments of `make_inputs` with up to so many queries.

    With `any_rule` the geometry may force other blocks than the paper's.
    """

    rules = [{}, {"first_blocks": 0, "last_blocks": 1}, {"first_blocks": 2, "last_blocks": 1}]

    @st.composite
    def draws(draw: st.DrawFn, most: int, *, any_rule: bool = False) -> tuple[BlockGeometry, dict]:
        stride = draw(st.sampled_from([1, 2, 4]))
        geometry = BlockGeometry(
            block=stride * draw(st.integers(1, 3)),
            stride=stride,
            select_block=stride * draw(st.integers(1, 4)),
            select_count=draw(st.integers(3, 6)),
            window=draw(st.integers(1, 40)),
            **(draw(st.sampled_from(rules)) if any_rule else {}),
        )
        batch = draw(st.integers(1, 2))
        queries = draw(st.integers(1, most))
        starts = st.integers(0, 40)
        start = draw(st.one_of(starts, st.lists(starts, min_size=batch, max_size=batch)))
        lengths = None
        if draw(st.booleans()) or isinstance(start, list):
            low = start if isinstance(start, list) else [start] * batch
            lengths = [draw(st.integers(0, first + queries)) for first in low]
        return geometry, {
            "batch": batch,
            "queries": queries,
            "start": start,
            "lengths": lengths,
            "kv_heads": draw(st.integers(1, 2)),
            "group": draw(st.sampled_from([1, 2, 5])),
            "dim": draw(st.integers(1, 6)),
            "value_dim": draw(st.integers(1, 6)),
            "shared": draw(st.booleans()),
            "seed": draw(st.integers(0, 1000)),
        }

    return draws


@contextmanager
def _poisoned() -> Iterator[None]:
    enabled = torch.are_deterministic_algorithms_enabled()
    warns = torch.is_deterministic_algorithms_warn_only_enabled()
    filled = torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)  # it is what makes the other one count
    torch.utils.deterministic.fill_uninitialized_memory = True
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(enabled, warn_only=warns)
        torch.utils.deterministic.fill_uninitialized_memory = filled


@pytest.fixture(scope="session")
def poisoned() -> Callable[[], AbstractContextManager[None]]:
    """A context in which memory that nobody has written holds NaN, or the largest integer."""
    return _poisoned


@pytest.fixture(scope="module")
def poisoned_allocations() -> Iterator[None]:
    """`poisoned` for a whole file."""
    with _poisoned():
        yield
