"""What a query reads, by the branches that count."""

import pytest

from nsa_models import NSADecoderConfig, NSADecoderForCausalLM
from nsa_models.kv import kv_cost
from nsa_models.methods import Method, attach, make_method

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


@pytest.mark.parametrize(
    ("name", "options", "read", "kept", "share"),
    [
        ("h2o", {"budget": 20, "recent": 8}, 21, 20, 1),
        ("h2o", {"budget": 20, "recent": 8, "variant": "mask"}, 20, 110, 1),
        ("snapkv", {"budget": 20, "window": 4}, 30, 30, 1),
        ("ada-snapkv", {"budget": 20, "window": 4, "local": 4, "first": 0}, 30, 30, 1),
        # every token of a block read, and of 32 tokens and its own the whole vectors
        ("mustafar", {"budget": 2}, 110, 110, (33 + 77 * 2 / 8) / 110),
        ("infllm", {"budget": 30, "first": 2, "local": 16, "block": 4, "unit": 8}, 16 + 2 + 12 + 4, 110, 1),
        ("dhsa-fixed", {"budget": 300}, 110, 110, 1),
    ],
)
def test_methods_are_counted_by_prompt_and_reply(
    name: str, options: dict[str, object], read: int, kept: int, share: float
) -> None:
    """The 10th token of a reply to a prompt of 100."""
    model = NSADecoderForCausalLM(NSADecoderConfig(**SHAPE, attention="full"))
    with attach(model, make_method(name, **options)):  # type: ignore[arg-type]
        cost = kv_cost(model, 110, 100)
    assert (cost.read, cost.kept) == (read, kept)
    width = 2 * 8 * model.dtype.itemsize
    assert cost.read_bytes == pytest.approx(read * share * width)
    assert cost.kept_bytes == pytest.approx(kept * share * width)


def test_layers_of_a_method_are_counted_apart() -> None:
    model = NSADecoderForCausalLM(NSADecoderConfig(**{**SHAPE, "num_hidden_layers": 4}, attention="full"))
    with attach(model, make_method("tidal-decode", 20, choosing=[1], dense_layers=[0])):
        assert kv_cost(model, 110, 100).read == (110 + 110 + 20 + 20) / 4


@pytest.mark.parametrize(
    ("method", "prefill", "decode"),
    [
        # Two of three layers are sparse. Quest reads prompts dense; a step takes three pages of five, the
        # last one of 11 tokens among them or not, and both extremes of all.
        (
            make_method("quest", 48, page=16, dense_layers=[0]),
            (75, None, 0),
            ((75 + 2 * 48) / 3, (75 + 2 * 43) / 3, 2 * 10 / 3),
        ),
        (
            make_method("exact-top", 32, first=4, local=8, dense_layers=[0]),
            ((75 + 2 * 32) / 3, None, 2 * 75 / 3),
            ((75 + 2 * 32) / 3, None, 2 * 75 / 3),
        ),
    ],
    ids=["quest", "exact-top"],
)
def test_a_method_costs_what_it_states_in_the_phase_in_which_it_acts(
    method: Method, prefill: tuple[float | None, ...], decode: tuple[float | None, ...]
) -> None:
    model = NSADecoderForCausalLM(NSADecoderConfig(**{**SHAPE, "num_hidden_layers": 3}, attention="full"))
    with attach(model, method):
        found = kv_cost(model, 75, phase="prefill"), kv_cost(model, 75)
    for cost, (read, least, index) in zip(found, (prefill, decode), strict=True):
        assert cost.read == pytest.approx(read)
        assert cost.least == (None if least is None else pytest.approx(least))
        assert cost.index == pytest.approx(index)
    assert kv_cost(model, 75).index == 0
