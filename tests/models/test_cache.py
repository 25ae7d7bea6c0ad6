"""The cache: cropping, copying and picking rows leave it as if filled that way."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from nsa_models import NSADecoderForCausalLM


def test_crop_forgets_the_last_tokens(any_model: NSADecoderForCausalLM, tokens: Tensor) -> None:
    with torch.no_grad():
        cache = any_model(tokens[:, :70], use_cache=True).past_key_values
        cache.crop(-33)
        assert cache.get_seq_length() == 37
        again = any_model(tokens[:, 37:], past_key_values=cache).logits
        whole = any_model(tokens).logits[:, 37:]
    torch.testing.assert_close(again, whole, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("remove", [5, -91])
def test_crop_refuses_what_it_cannot_do(
    any_model: NSADecoderForCausalLM, tokens: Tensor, remove: int
) -> None:
    cache = any_model(tokens, use_cache=True).past_key_values
    with pytest.raises(ValueError, match="crop takes minus"):
        cache.crop(remove)


def test_repeated_and_picked_rows_go_on_alone(any_model: NSADecoderForCausalLM, tokens: Tensor) -> None:
    with torch.no_grad():
        cache = any_model(tokens[:, :50], use_cache=True).past_key_values
        cache.batch_repeat_interleave(2)  # rows 0 0 1 1
        cache.batch_select_indices(torch.tensor([3, 0, 1]))
        nexts = torch.stack([tokens[1, 50:70], tokens[0, 50:70], tokens[1, 50:70]])
        got = any_model(nexts, past_key_values=cache).logits
        second = torch.cat([tokens[0, :50], tokens[1, 50:70]])[None]
        whole = any_model(tokens[:, :70]).logits[:, 50:]
        mixed = any_model(second).logits[:, 50:]
    expected = torch.stack([whole[1], whole[0], mixed[0]])
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)


def test_a_copy_grows_apart_from_its_source(any_model: NSADecoderForCausalLM, tokens: Tensor) -> None:
    import copy

    with torch.no_grad():
        cache = any_model(tokens[:1, :40], use_cache=True).past_key_values
        other = copy.deepcopy(cache)
        any_model(tokens[1:, 40:60], past_key_values=other)
        got = any_model(tokens[:1, 40:60], past_key_values=cache).logits
        whole = any_model(tokens[:1, :60]).logits[:, 40:]
    torch.testing.assert_close(got, whole, rtol=1e-5, atol=1e-6)
