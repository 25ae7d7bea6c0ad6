"""Rotary position embedding, with transformers' own scalings (YaRN, linear, dynamic, llama3, longrope).

`partial_rotary_factor` in `rope_parameters` rotates the first r = int(d_k * factor) dimensions of a head and
leaves the others as they are, as in GPT-NeoX: what they hold matches at any distance.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS, dynamic_rope_update

from nsa_kernels.heads import norm_rotate
from nsa_models.configuration import NSADecoderConfig


class RotaryEmbedding(nn.Module):
    """Cosines and sines of given positions, NeoX halves layout.

    The two buffers and `compute_default_rope_parameters` carry the names that transformers' weight loading
    looks for when it initialises a rotary module.
    """

    inv_freq: Tensor
    original_inv_freq: Tensor

    def __init__(self, config: NSADecoderConfig) -> None:
        """Compute the frequencies of `config.rope_parameters`.

        Raises:
            ValueError: A rope_type that transformers doesn't have.
        """
        super().__init__()
        self.config = config
        assert config.rope_parameters is not None  # PreTrainedConfig fills in the default type
        self.rope_type: str = config.rope_parameters["rope_type"]
        if self.rope_type not in ("default", *ROPE_INIT_FUNCTIONS):
            known = ", ".join(sorted({"default", *ROPE_INIT_FUNCTIONS}))
            raise ValueError(f"rope_type must be one of {known}, got {self.rope_type!r}")
        self.max_seq_len_cached = config.max_position_embeddings
        self.original_max_seq_len = config.max_position_embeddings
        init = (
            self.compute_default_rope_parameters
            if self.rope_type == "default"
            else ROPE_INIT_FUNCTIONS[self.rope_type]
        )
        self.attention_scaling: float
        inv_freq, self.attention_scaling = init(config)
        self.register_buffer("inv_freq", inv_freq, persistent=False)
        self.register_buffer("original_inv_freq", inv_freq.clone(), persistent=False)

    @staticmethod
    def compute_default_rope_parameters(
        config: NSADecoderConfig, device: torch.device | None = None, seq_len: int | None = None
    ) -> tuple[Tensor, float]:
        """Unscaled frequencies theta^(-2i/r), shape [r / 2], and the attention factor 1."""
        assert config.rope_parameters is not None
        theta = float(config.rope_parameters["rope_theta"])
        rotated = config.rotary_dim
        exponents = torch.arange(0, rotated, 2, dtype=torch.float32, device=device) / rotated
        return theta**-exponents, 1.0

    @torch.no_grad()
    @dynamic_rope_update  # type: ignore[untyped-decorator]
    def forward(self, x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Return cos and sin [B, N, 1, r] in float32 for position_ids [B, N]; `x` only tells the device.

        The longest of these positions decides on the frequencies where they depend on the length.
        """
        return self.at(position_ids)

    @torch.no_grad()
    def at(self, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        """The same with the frequencies of the last `forward`: compressed keys have those of their tokens."""
        angles = position_ids[..., None].float() * self.inv_freq.to(position_ids.device).float()
        angles = torch.cat((angles, angles), dim=-1)[:, :, None]
        return angles.cos() * self.attention_scaling, angles.sin() * self.attention_scaling


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the first r dimensions of x [B, N, heads, d_k] by float32 cos, sin [B, N, 1, r].

    float32 inside, x's dtype outside.
    """
    return norm_rotate(x, None, 0.0, cos, sin)
