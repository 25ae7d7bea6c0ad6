"""Compression by Triton kernels against that in torch, in the interpreter where there is no GPU."""

import os

import pytest
import torch
from torch import Tensor

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
pytest.importorskip("triton")

from launch_candidates import candidates

from nsa_kernels import BlockGeometry, compress_linear, compress_mean, compress_mlp, num_blocks
from nsa_kernels.triton.phi import functions

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
GEOMETRIES = {
    "l = 2d": BlockGeometry(block=8, stride=4, select_block=8),
    "l = 3d": BlockGeometry(block=6, stride=2, select_block=4),
    "l = d": BlockGeometry(block=5, stride=5, select_block=5),
    "l = d = 1": BlockGeometry(block=1, stride=1, select_block=1),
}
PHIS = ("mean", "mean-pe", "linear", "linear-bias", "linear-pe-bias", "mlp", "mlp-pe-biases")
LENGTHS = [1, 4, 8, 37]


def _random(*shape: int, seed: int = 0) -> Tensor:
    """Float64 numbers that float32 holds."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).double()


def _weights(
    phi: str, geometry: BlockGeometry, dim: int, out: int = 7, hidden: int = 19
) -> dict[str, Tensor]:
    kind, *parts = phi.split("-")
    width = geometry.block * dim
    made: dict[str, Tensor] = {}
    if kind == "linear":
        made["weight"] = _random(out, width) * width**-0.5
    if kind == "mlp":
        made["weight_in"], made["weight_out"] = _random(hidden, width) * width**-0.5, _random(out, hidden)
    if "pe" in parts:
        made["pe"] = _random(geometry.block, dim, seed=1)
    if "bias" in parts:
        made["bias"] = _random(out, seed=2)
    if "biases" in parts:
        made["bias_in"], made["bias_out"] = _random(hidden, seed=3), _random(out, seed=4)
    return made


def _run(phi: str, x: Tensor, geometry: BlockGeometry, backend: str, **weights: Tensor) -> Tensor:
    function = {"mean": compress_mean, "linear": compress_linear, "mlp": compress_mlp}[phi.split("-")[0]]
    return function(x, geometry=geometry, backend=backend, **weights)


def _with_gradients(phi: str, x: Tensor, weights: dict[str, Tensor], geometry, backend: str):
    x = x.detach().requires_grad_()
    weights = {name: weight.detach().requires_grad_() for name, weight in weights.items()}
    out = _run(phi, x, geometry, backend, **weights)
    upstream = _random(*out.shape, seed=9).to(out)
    gradients = torch.autograd.grad((out * upstream).sum(), [x, *weights.values()], allow_unused=True)
    return out, dict(zip(["x", *weights], gradients, strict=True))


@pytest.mark.parametrize("phi", PHIS)
@pytest.mark.parametrize("geometry", GEOMETRIES.values(), ids=GEOMETRIES)
@pytest.mark.parametrize("length", LENGTHS)
def test_equals_torch_in_float64_with_gradients(phi: str, geometry: BlockGeometry, length: int) -> None:
    dim = 5
    x, weights = _random(2, length, 3, dim), _weights(phi, geometry, dim)
    expected, expected_gradients = _with_gradients(phi, x, weights, geometry, "torch")
    there = {name: weight.float().to(DEVICE) for name, weight in weights.items()}
    out, gradients = _with_gradients(phi, x.float().to(DEVICE), there, geometry, "triton")
    assert out.shape == expected.shape == (2, num_blocks(length, geometry), 3, expected.shape[-1])
    assert out.dtype == torch.float32
    torch.testing.assert_close(out.cpu().double(), expected, rtol=1e-5, atol=1e-5)
    for name, gradient in gradients.items():
        torch.testing.assert_close(
            gradient.cpu().double(),
            expected_gradients[name],
            rtol=1e-5,
            atol=1e-4,
            msg=lambda m, n=name: f"{n}: {m}",
        )


@pytest.mark.parametrize("phi", ["mean", "linear-bias", "mlp"])
@pytest.mark.parametrize("dim", [16, 48])
def test_more_blocks_and_widths_than_a_tile(phi: str, dim: int) -> None:
    """The tiles of the interpreter have 16 rows and 16 columns; a program of the mean has 4 blocks."""
    geometry = GEOMETRIES["l = 2d"]
    x = _random(2, 61, 2, dim)
    weights = _weights(phi, geometry, dim, out=24, hidden=40)
    expected = _run(phi, x, geometry, "torch", **weights)
    there = {name: weight.float().to(DEVICE) for name, weight in weights.items()}
    out = _run(phi, x.float().to(DEVICE), geometry, "triton", **there)
    torch.testing.assert_close(out.cpu().double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("phi", ["mean", "linear", "mlp"])
def test_any_strides_and_a_slice_of_a_cache(phi: str) -> None:
    geometry, dim = GEOMETRIES["l = 2d"], 5
    weights = {name: weight.float().to(DEVICE) for name, weight in _weights(phi, geometry, dim).items()}
    cache = _random(2, 3, 50, dim + 2).float().to(DEVICE)
    views = (
        cache.transpose(1, 2)[:, 8:45, :, 1 : dim + 1],
        cache[:, :, :37, :dim].transpose(1, 2),
        _random(2, 37, dim, 3).float().to(DEVICE).transpose(2, 3),
    )
    for view in views:
        assert not view.is_contiguous()
        out, gradients = _with_gradients(phi, view, weights, geometry, "triton")
        expected, expected_gradients = _with_gradients(phi, view.contiguous(), weights, geometry, "torch")
        torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(gradients["x"], expected_gradients["x"], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("phi", PHIS)
def test_tokens_behind_the_last_block_influence_nothing(phi: str) -> None:
    geometry, dim = GEOMETRIES["l = 2d"], 5
    weights = {name: weight.float().to(DEVICE) for name, weight in _weights(phi, geometry, dim).items()}
    x = _random(1, 39, 2, dim).float().to(DEVICE)
    x[:, 36:] = float("nan")
    out, gradients = _with_gradients(phi, x, weights, geometry, "triton")
    assert out.shape[1] == 8
    assert out.isfinite().all()
    assert all(gradient.isfinite().all() for gradient in gradients.values())
    assert (gradients["x"][:, 36:] == 0).all()
    x[:, 5] = float("nan")
    broken = _run(phi, x, geometry, "triton", **weights).isnan().all(-1).all(-1)[0]
    assert broken.tolist() == [True, True] + 6 * [False]  # the two blocks over token 5, and no other


@pytest.mark.parametrize("phi", PHIS)
def test_half_precision_sums_in_float32(phi: str) -> None:
    geometry, dim = GEOMETRIES["l = 2d"], 16
    x, weights = _random(1, 40, 2, dim), _weights(phi, geometry, dim)
    x, weights = x.half().double(), {name: weight.half().double() for name, weight in weights.items()}
    expected, expected_gradients = _with_gradients(phi, x, weights, geometry, "torch")
    halves = {name: weight.half().to(DEVICE) for name, weight in weights.items()}
    out, gradients = _with_gradients(phi, x.half().to(DEVICE), halves, geometry, "triton")
    assert {out.dtype, *(gradient.dtype for gradient in gradients.values())} == {torch.float16}

    def error(ours: Tensor, theirs: Tensor) -> float:
        return ((ours.cpu().double() - theirs).norm() / theirs.norm()).item()

    assert error(out, expected) < 1e-3
    assert all(error(gradients[name], expected_gradients[name]) < 4e-3 for name in gradients)


def test_gradients_only_where_asked_for() -> None:
    geometry, dim = GEOMETRIES["l = 2d"], 5
    weights = {
        name: weight.float().to(DEVICE) for name, weight in _weights("mlp-pe-biases", geometry, dim).items()
    }
    x = _random(1, 20, 2, dim).float().to(DEVICE)
    weights["bias_out"].requires_grad_()
    out = _run("mlp", x, geometry, "triton", **weights)
    out.sum().backward()
    torch.testing.assert_close(weights["bias_out"].grad, torch.full_like(weights["bias_out"], 2.0 * 4))
    assert not _run("mean", x, geometry, "triton").requires_grad


def test_every_launch_worth_measuring_computes_the_same() -> None:
    geometry, dim = GEOMETRIES["l = 2d"], 16
    x = _random(1, 70, 2, dim).half().to(DEVICE)
    launches = {
        "mean": (functions.compress_mean, candidates("compress_mean")),
        "linear": (functions.compress_linear, candidates("compress_linear")),
        "mlp": (functions.compress_mlp, candidates("compress_mlp")),
    }
    for phi, (function, search) in launches.items():
        weights = {name: w.half().to(DEVICE) for name, w in _weights(phi, geometry, dim).items()}
        wide = {name: weight.double() for name, weight in weights.items()}
        expected = _run(phi, x.double(), geometry, "torch", **wide)
        for config in search:
            out = function(x, geometry=geometry, config=config, **weights)
            torch.testing.assert_close(out.double(), expected, rtol=5e-3, atol=5e-3)


class TestChoice:
    x = torch.randn(1, 20, 2, 5)

    def test_auto_takes_triton_where_the_attention_does(self, monkeypatch) -> None:
        called = []
        monkeypatch.setattr(functions, "mean_forward", lambda x, *_, **__: called.append(1) or x[:, :1])
        x, geometry = self.x.to(DEVICE, torch.float16), GEOMETRIES["l = 2d"]
        monkeypatch.setattr("nsa_kernels.compression.choose_backend", lambda *_, **__: "torch")
        compress_mean(x, geometry)
        assert not called
        monkeypatch.setattr("nsa_kernels.compression.choose_backend", lambda *_, **__: "triton")
        compress_mean(x, geometry)
        assert len(called) == 1
        compress_mean(x, geometry, backend="torch")
        assert len(called) == 1

    def test_other_dtypes_are_left_to_torch(self) -> None:
        geometry, weight = GEOMETRIES["l = 2d"], torch.randn(7, 40, device=DEVICE)
        x = self.x.to(DEVICE)
        for wrong in (x.double(), x.long()):
            with pytest.raises(ValueError, match="backend 'triton' compresses tensors of one dtype out of"):
                compress_mean(wrong, geometry, backend="triton")
        with pytest.raises(ValueError, match=r"got torch\.float16, torch\.float32; use backend='torch'"):
            compress_linear(x.half(), weight, geometry, backend="triton")
        assert compress_mean(x.double(), geometry).dtype == torch.float64

    def test_unknown_backends_are_named(self) -> None:
        with pytest.raises(ValueError, match="unknown backend 'cuda': choose auto, torch, triton"):
            compress_mean(self.x, GEOMETRIES["l = 2d"], backend="cuda")

    def test_autocast_casts_as_for_a_matrix_product(self) -> None:
        geometry, x = GEOMETRIES["l = 2d"], self.x.to(DEVICE)
        weight = torch.randn(7, 40, device=DEVICE) / 40**0.5
        with torch.autocast(DEVICE, dtype=torch.float16):
            out = compress_linear(x, weight, geometry, backend="triton")
        assert out.dtype == torch.float16
        torch.testing.assert_close(out.float(), compress_linear(x, weight, geometry), rtol=0.02, atol=0.02)
