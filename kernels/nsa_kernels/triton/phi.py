"""phi as a value: which compression, and its weights, for whoever compresses token by token."""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from nsa_kernels.compression import compress_linear, compress_mean, compress_mlp
from nsa_kernels.geometry import BlockGeometry


@dataclass(frozen=True, slots=True, kw_only=True)
class Phi:
    """One compression phi, for keys or for values; a block is l tokens of D each, the token outermost.

    The last dimension of the weights should be contiguous: else they are copied at every use.
    """

    kind: Literal["mean", "linear", "mlp"]
    weight: Tensor | None = None
    """linear: [D_out, l*D]. mlp: [D_hidden, l*D]. mean: None."""
    bias: Tensor | None = None
    """[D_out] or [D_hidden], or None."""
    weight_out: Tensor | None = None
    """mlp: [D_out, D_hidden]."""
    bias_out: Tensor | None = None
    """mlp: [D_out], or None."""
    pe: Tensor | None = None
    """Positional embedding inside a block [l, D], or None; of every kind."""

    def compress(self, x: Tensor, geometry: BlockGeometry, *, backend: str = "auto") -> Tensor:
        """phi of all complete blocks at once.

        Args:
            x: Keys or values [B, S, H_kv, D].
            geometry: Block sizes.
            backend: As for `nsa_kernels.compress_mean`.

        Returns:
            [B, C, H_kv, D_out].

        Raises:
            ValueError: A weight's shape does not fit, or it is missing.
        """
        self.check(geometry, x.shape[-1])
        if self.weight is None:
            return compress_mean(x, geometry, pe=self.pe, backend=backend)
        if self.weight_out is None:
            return compress_linear(x, self.weight, geometry, bias=self.bias, pe=self.pe, backend=backend)
        return compress_mlp(
            x, self.weight, self.weight_out, geometry,
            bias_in=self.bias, bias_out=self.bias_out, pe=self.pe, backend=backend,
        )  # fmt: skip

    def check(self, geometry: BlockGeometry, width: int) -> None:
        """Holds the weights to the kind, the block and the width of a token, which phi keeps.

        Args:
            geometry: Block sizes.
            width: D.

        Raises:
            ValueError: They do not fit.
        """
        hidden = self.weight.shape[0] if self.kind == "mlp" and self.weight is not None else width
        whole, linear, mlp = geometry.block * width, self.kind != "mean", self.kind == "mlp"
        # name -> the shape, whether the kind has it, and whether it must be there
        expected = {
            "weight": ((hidden, whole), linear, linear),
            "bias": ((hidden,), linear, False),
            "weight_out": ((width, hidden), mlp, mlp),
            "bias_out": ((width,), mlp, False),
            "pe": ((geometry.block, width), True, False),
        }
        if self.kind not in ("mean", "linear", "mlp"):
            raise ValueError(f"kind must be mean, linear or mlp, got {self.kind!r}")
        for name, (shape, takes, needs) in expected.items():
            tensor: Tensor | None = getattr(self, name)
            if tensor is None and needs:
                raise ValueError(f"phi {self.kind} needs {name} {list(shape)}, got None")
            if tensor is not None and not takes:
                raise ValueError(f"phi {self.kind} takes no {name}: leave it out")
            if tensor is not None and tensor.shape != shape:
                raise ValueError(
                    f"{name} of phi {self.kind} must be {list(shape)} for l = {geometry.block} and "
                    f"D = {width}, got {list(tensor.shape)}"
                )
