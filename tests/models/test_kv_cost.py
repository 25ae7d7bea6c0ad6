"""What a query reads, by the branches that count."""

import pytest

from nsa_models import NSADecoderConfig, NSADecoderForCausalLM
from nsa_models.kv import kv_cost

SHAPE = {
    "vocab_size": 32,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "nsa_block": 8,
    "nsa_stride": 8,
    "nsa_select_block": 8,
    "nsa_select_count": 4,
    "nsa_window": 12,
}


@pytest.mark.parametrize(
    ("branches", "read"),
    [
        ("cmp+slc+win", 10 + 32 + 12),
        ("cmp+slc", 10 + 32),
        ("slc", 10 + 32),  # compressed keys choose the blocks
        ("cmp", 10),
        ("win", 12),
    ],
)
def test_closed_branches_read_nothing(branches: str, read: int) -> None:
    model = NSADecoderForCausalLM(NSADecoderConfig(**SHAPE, nsa_branches=branches))
    assert kv_cost(model, 80).read == read


@pytest.mark.parametrize("branches", ["", "cmp+cmp", "cmp+window", "cmp,slc"])
def test_branches_are_named(branches: str) -> None:
    with pytest.raises(ValueError, match="nsa_branches must be one or more of cmp, slc, win"):
        NSADecoderConfig(**SHAPE, nsa_branches=branches)
