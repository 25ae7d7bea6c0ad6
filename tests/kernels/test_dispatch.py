from dataclasses import replace
from unittest import mock

import pytest
import torch

from nsa_kernels import (
    BackendUnavailableError,
    BlockGeometry,
    available_backends,
    choose_backend,
    dispatch,
    nsa_attention,
    nsa_decode,
)

OTHER_RULE = BlockGeometry(block=8, stride=8, select_block=8, select_count=4, first_blocks=0, last_blocks=1)


def test_reference_and_torch_always_run() -> None:
    assert {"reference", "torch"} <= set(available_backends())


def test_auto_is_torch_on_a_cpu(make_inputs, small) -> None:
    assert choose_backend(torch.device("cpu")) == "torch"
    inputs = make_inputs(small, queries=20)
    assert torch.equal(inputs.run(nsa_attention).out, inputs.run(nsa_attention, backend="torch").out)


def test_unknown_backend_names_the_known(make_inputs, small) -> None:
    with pytest.raises(ValueError, match=r"unknown backend 'cuda': choose auto, reference, torch, .*triton"):
        make_inputs(small, queries=5).run(nsa_attention, backend="cuda")


def test_a_missing_backend_says_why_and_what_runs(make_inputs, small) -> None:
    with (
        mock.patch.object(dispatch, "_missing", lambda name: "no such card" if name == "triton" else None),
        pytest.raises(
            BackendUnavailableError, match=r"'triton' cannot run here: no such card; .*auto, reference, torch"
        ),
    ):
        make_inputs(small, queries=5).run(nsa_attention, backend="triton")


def test_auto_is_triton_on_a_gpu_for_what_its_kernels_compute() -> None:
    gpu = torch.device("cuda")
    capability = mock.patch.object(torch.cuda, "get_device_capability", return_value=(9, 0))
    with mock.patch.object(dispatch, "_missing", return_value=None), capability as asked:
        assert choose_backend(gpu) == choose_backend(gpu, torch.float16) == "triton"
        assert choose_backend(gpu, torch.float32) == choose_backend(gpu, torch.float64) == "torch"
        assert choose_backend(gpu, group=16, width=192) == "triton"
        assert choose_backend(gpu, geometry=BlockGeometry(block=64, stride=64)) == "triton"
        assert choose_backend(gpu, geometry=OTHER_RULE) == "torch"
        assert choose_backend(gpu, group=17) == choose_backend(gpu, width=256) == "torch"
        asked.return_value = (7, 5)
        assert choose_backend(gpu) == "torch"
    with mock.patch.object(dispatch, "_missing", lambda name: "why" if name == "triton" else None):
        assert choose_backend(gpu) == "torch"


def test_triton_says_that_it_forces_the_papers_blocks(make_inputs) -> None:
    inputs = make_inputs(OTHER_RULE, queries=20)
    with (
        mock.patch.object(dispatch, "_missing", return_value=None),
        pytest.raises(ValueError, match=r"forces the first 0 and the last 1: use auto, torch or reference"),
    ):
        inputs.run(nsa_attention, backend="triton")


def _broken(inputs, **changes):
    names = ("q", "k_cmp", "v_cmp", "k_slc", "v_slc", "k_win", "v_win", "gates")
    tensors = dict(zip(names, inputs.tensors, strict=True))
    return replace(inputs, tensors=tuple({**tensors, **changes}.values()))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"q": torch.zeros(2, 20, 4)}, r"q must be \[B, N, H, D_k\], got \[2, 20, 4\]"),
        ({"q": torch.zeros(2, 0, 4, 4)}, "q holds no queries"),
        ({"q": torch.zeros(2, 20, 3, 4)}, "multiple of KV heads, got H = 3 and H_kv = 2"),
        ({"k_win": torch.zeros(2, 19, 2, 4)}, r"k_win must be \[2, 20, 2, 4\] .*got \[2, 19, 2, 4\]"),
        ({"v_cmp": torch.zeros(2, 4, 2, 5)}, r"v_cmp must be \[2, 4, 2, 4\]"),
        ({"k_slc": torch.zeros(20, 2, 4)}, r"k_slc must be \[B, length, H_kv, D\]"),
        ({"gates": torch.zeros(2, 20, 4)}, r"gates must be \[B, N, H, 3\] = \[2, 20, 4, 3\]"),
        (
            {"k_cmp": torch.zeros(2, 3, 2, 4), "v_cmp": torch.zeros(2, 3, 2, 4)},
            "k_cmp holds 3 compressed keys, but 20 tokens have 4 complete blocks",
        ),
    ],
)
def test_wrong_shapes_are_named(changes: dict, message: str, make_inputs, small) -> None:
    with pytest.raises(ValueError, match=message):
        _broken(make_inputs(small, queries=20), **changes).run(nsa_attention)


def test_queries_beyond_the_cache_are_an_error(make_inputs, small) -> None:
    inputs = make_inputs(small, queries=20)
    with pytest.raises(ValueError, match=r"stand at 5\.\.24 but k_slc holds 20 tokens"):
        replace(inputs, start=5).run(nsa_attention)
    with pytest.raises(ValueError, match="start must not be negative, got -1"):
        replace(inputs, start=-1).run(nsa_attention)


def test_lengths_must_be_integers_for_each_row(make_inputs, small) -> None:
    inputs = make_inputs(small, queries=20)
    with pytest.raises(ValueError, match=r"lengths must be integers \[B\] = \[2\], got \[3\]"):
        replace(inputs, lengths=torch.tensor([1, 2, 3])).run(nsa_attention)
    with pytest.raises(ValueError, match="lengths must be integers"):
        replace(inputs, lengths=torch.tensor([1.0, 2.0])).run(nsa_attention)


def test_decode_wants_one_token(make_inputs, small) -> None:
    inputs = make_inputs(small, queries=20)
    with pytest.raises(ValueError, match=r"q must be \[B, H, D_k\] .*got \[2, 20, 4, 4\]"):
        nsa_decode(*inputs.tensors, geometry=small, lengths=torch.tensor([20, 20]))
