"""A small decoder of each attention, in float64 so that equalities are exact up to rounding."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from nsa_models import NSADecoderConfig, NSADecoderForCausalLM

# l, d, l', n, w so small that 100 tokens hold dozens of blocks and the selection leaves most of them out.
TINY: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0},
    "initializer_range": 0.3,
    "nsa_block": 8,
    "nsa_stride": 4,
    "nsa_select_block": 8,
    "nsa_select_count": 4,
    "nsa_window": 12,
    "nsa_compression_hidden": 16,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
}

VARIANTS: dict[str, dict[str, Any]] = {
    "full": {"attention": "full"},
    "nsa": {},
    "nsa-wide-values": {"v_head_dim": 12},
    "nsa-linear": {"nsa_compression": "linear"},
    "nsa-mean": {"nsa_compression": "mean", "nsa_compress_rotated": True},
    "nsa-shared-kv": {"nsa_share_kv": True, "qk_norm": False},
    "nsa-untied-mqa": {"num_key_value_heads": 1, "tie_word_embeddings": False, "attention_bias": True},
    "full-yarn": {
        "attention": "full",
        "rope_parameters": {
            "rope_type": "yarn",
            "rope_theta": 10_000.0,
            "factor": 4.0,
            "original_max_position_embeddings": 64,
        },
    },
}


@pytest.fixture
def tiny_model() -> Callable[..., NSADecoderForCausalLM]:
    """Make a small random model: tiny_model(attention="full", ...)."""

    def make(dtype: torch.dtype = torch.float64, **changes: Any) -> NSADecoderForCausalLM:
        torch.manual_seed(0)
        return NSADecoderForCausalLM(NSADecoderConfig(**{**TINY, **changes})).to(dtype).eval()

    return make


@pytest.fixture(params=list(VARIANTS))
def any_model(
    request: pytest.FixtureRequest, tiny_model: Callable[..., NSADecoderForCausalLM]
) -> NSADecoderForCausalLM:
    """Each variant of the decoder in turn."""
    return tiny_model(**VARIANTS[request.param])


@pytest.fixture
def tokens() -> torch.Tensor:
    """Two rows of 90 random tokens."""
    return torch.randint(3, 97, (2, 90), generator=torch.Generator().manual_seed(1))
