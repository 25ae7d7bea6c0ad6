"""A GPU waits where the host asks for a number: decode steps ask for next to none."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import PreTrainedModel

from nsa_models.methods import Method, attach, keep_top, make_method
from nsa_models.methods import _block as block
from nsa_models.methods._placement import NewTokens, Placement

from .conftest import Rows, small_methods, tokens

ASKING = ("_local_scalar_dense", "nonzero", "equal", "is_nonzero")


class Asked(TorchDispatchMode):
    """Counts the operations whose result the host waits for."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        name = func.overloadpacket.__name__
        if name in ASKING:
            self.found[name] += 1
        return func(*args, **(kwargs or {}))


@pytest.fixture
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(block, "_worth_asking", lambda cells: False)


def asks_in_a_step(model: PreTrainedModel, method: Method, rows: int) -> int:
    """Of the second decode step of rows of one length: the first one closes the prompt."""
    with attach(model, method) as attached:
        read = Rows(model, rows, attached)
        read.feed([tokens(40, seed=row) for row in range(rows)])
        read.feed([tokens(1)] * rows, decode=True)
        with Asked() as asked:
            read.feed([tokens(1)] * rows, decode=True)
    return sum(asked.found.values())


@pytest.mark.usefixtures("as_on_a_gpu")
@pytest.mark.parametrize(
    "method",
    [one for one in small_methods() if not hasattr(one, "weights") and one.phase != "prefill"],
    ids=lambda one: one.label,
)
@pytest.mark.parametrize("kind", ["llama", "decoder"])
def test_a_decode_step_asks_once_a_row_at_most(
    make_model: Callable[..., PreTrainedModel], kind: str, method: Method
) -> None:
    own = asks_in_a_step(make_model(kind), make_method("moba", 8, chunk=4), 3)  # dense steps: the model's
    assert asks_in_a_step(make_model(kind), method, 3) - own <= 3 * method.rowwise


@pytest.mark.usefixtures("as_on_a_gpu")
def test_ties_are_sorted_out_unasked() -> None:
    scores = torch.randint(0, 3, (50, 9), generator=torch.Generator().manual_seed(0)).float()
    among = torch.rand(50, 9, generator=torch.Generator().manual_seed(1)) < 0.7
    counts = torch.randint(0, 9, (50, 1), generator=torch.Generator().manual_seed(2))
    for row, left, count in zip(scores, among, counts, strict=True):
        best = sorted(left.nonzero().flatten().tolist(), key=lambda s: (-float(row[s]), s))[: int(count)]
        for kept in (keep_top(row, int(count), left), keep_top(row, count, left, most=9)):
            assert kept.nonzero().flatten().tolist() == sorted(best)


def test_runs_say_what_masks_say() -> None:
    # Row 0 has two tokens behind one of padding, row 1 three, row 2 nothing but padding in this forward.
    real = torch.tensor([[False, True, True], [True, True, True], [False, False, False]])
    before = torch.tensor([[True, False], [True, True], [True, True]])
    columns = torch.cat([before, real], 1)
    order = torch.arange(5)
    mask = (order <= order[2:, None]) & columns[:, None] & real[..., None]
    place = Placement.from_mask(mask[:, None])
    assert place is not None
    assert place.new is not None
    assert [(new.column, new.count) for new in place.new] == [(1, 2), (0, 3), (3, 0)]
    assert [place.new[row].position for row in (0, 1)] == [1, 2]


def test_tokens_that_stand_apart_are_no_run() -> None:
    real = torch.tensor([[True, False, True]])
    order = torch.arange(3)
    mask = (order <= order[:, None]) & real[:, None] & real[..., None]
    place = Placement.from_mask(mask[:, None])
    assert place is not None
    assert place.together(0) is None
    (new,) = place.tokens()
    assert (new.position, new.end, new.count) == (0, 2, 2)
    assert torch.equal(torch.arange(3)[new.where], torch.tensor([0, 2]))


def test_counts_cut_runs() -> None:
    place = Placement.bottom_right(2, 4, 10, torch.device("cpu"))
    assert place.counted([4, 4]) is place
    cut = place.counted([4, 1])
    assert cut.new == (NewTokens(column=0, count=4, position=6), NewTokens(column=0, count=1, position=6))
    assert cut.real is not None
    assert cut.real.sum(-1).tolist() == [4, 1]
