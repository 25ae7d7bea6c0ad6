"""What every method must do on every kind of model; a method is tested by standing in `LISTED`."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable

import pytest
import torch
from transformers import PreTrainedModel

from nsa_models.methods import Method, QueryBlock, attach, make_method, methods, parse_method
from nsa_models.methods._rotary import Rotation

from .conftest import LISTED, Rows, read_alone, tokens

CLOSE = {"rtol": 1e-9, "atol": 1e-9}


def per_token(method: Method, start: int, end: int) -> tuple[int, int]:
    """Least and most KV tokens that queries at positions start..end-1 read in one head."""
    spans = [(method.kv_reads_least(t + 1), method.kv_reads(t + 1)) for t in range(start, end)]
    return sum(least for least, _ in spans), sum(most for _, most in spans)


def test_every_method_is_listed() -> None:
    assert set(LISTED) == set(methods())


def test_declarations_are_complete(method: Method) -> None:
    record = json.loads(json.dumps(method.describe()))
    assert record["parameters"].keys() == {field.name for field in dataclasses.fields(method)}
    assert all(record["declarations"][key] not in ("", None) for key in record["declarations"])
    assert re.fullmatch(r"\d{4}\.\d{4,5}", method.paper)
    assert re.fullmatch(r"[\w.@+=-]+", method.label)
    assert method.phase in ("prefill", "decode", "both")


def test_label_tells_parameters_apart(method: Method) -> None:
    assert method.label == f"{method.name}@{method.budget}" or "=" in method.label
    weights = {name: value for name, value in method.parameters().items() if name == "weights"}
    default = make_method(method.name, 2560, **weights)
    assert default.label.startswith(f"{method.name}@2560")
    assert weights or default.label == f"{method.name}@2560"
    assert (method.label == default.label) == (method == default)


def test_text_gives_the_same_method(method: Method) -> None:
    options = [
        f"{key}={'+'.join(map(str, value)) or 'none' if isinstance(value, tuple) else value}"
        for key, value in method.parameters().items()
        if key != "budget"
    ]
    assert parse_method(f"{method.name}:{','.join([str(method.budget), *options])}") == method


def test_full_budget_is_dense(model: PreTrainedModel, method: Method) -> None:
    row, steps = tokens(40), 1
    full = dataclasses.replace(method, budget=400)
    # Prompts are sparse from the first query on, decode-only methods from the first step on.
    first = len(row) - steps if method.phase == "decode" else 0
    assert all(full.kv_reads_least(t + 1) == t + 1 for t in range(first, len(row)))
    dense = read_alone(model, None, row, steps)
    with attach(model, full) as attached:
        torch.testing.assert_close(read_alone(model, attached, row, steps), dense, **CLOSE)
        assert any(layer.sparse for layer in attached.reads.last)


def test_small_budget_is_not_dense(model: PreTrainedModel, method: Method) -> None:
    row = tokens(40)
    dense = read_alone(model, None, row, 2)
    with attach(model, method) as attached:
        sparse = read_alone(model, attached, row, 2)
    assert (sparse[-1] - dense[-1]).abs().max() > 1e-3


def test_selection_is_causal(model: PreTrainedModel, method: Method) -> None:
    assert method.lm_scores, "a method whose choices look ahead needs a test that shows it"
    row, other = tokens(40), tokens(40, seed=9)
    changed = torch.cat([row[:25], other[25:]])
    with attach(model, method) as attached:
        one, two = (read_alone(model, attached, ids, 0) for ids in (row, changed))
    torch.testing.assert_close(one[:25], two[:25], **CLOSE)
    assert (one[25:] - two[25:]).abs().max() > 1e-3


def test_pieces_equal_the_whole_prompt(model: PreTrainedModel, method: Method) -> None:
    assert method.chunked_prefill, (
        "a method that needs the whole prompt must refuse pieces, which nothing tests yet"
    )
    row = tokens(40)
    with attach(model, method) as attached:
        whole = read_alone(model, attached, row, 6)
        rows = Rows(model, 1, attached)
        # A last piece of one token is still prefill.
        parts = [logits for piece in row[:34].split([13, 20, 1]) for logits in rows.feed([piece])]
        for token in row[34:]:
            parts += rows.feed([token[None]], decode=True)
    torch.testing.assert_close(torch.cat(parts), whole, **CLOSE)


def test_padded_rows_equal_rows_alone(model: PreTrainedModel, method: Method) -> None:
    many = [tokens(40, seed=2), tokens(23, seed=3), tokens(31, seed=4)]
    pieces = [[13, 20, 1], [13, 4, 0], [9, 16, 0]]
    with attach(model, method) as attached:
        alone = [read_alone(model, attached, row, 6) for row in many]
        totals = {"prefill": attached.reads.prefill, "decode": attached.reads.decode}
        attached.reads.reset()
        rows = Rows(model, 3, attached)
        parts: list[list[torch.Tensor]] = [[], [], []]
        splits = [row[:-6].split(sizes) for row, sizes in zip(many, pieces, strict=True)]
        for step in range(3):
            for row, logits in enumerate(rows.feed([split[step] for split in splits])):
                parts[row].append(logits)
        for step in range(6):
            given = [row[len(row) - 6 + step][None] for row in many]
            for row, logits in enumerate(rows.feed(given, decode=True)):
                parts[row].append(logits)
        assert totals == {"prefill": attached.reads.prefill, "decode": attached.reads.decode}
    for row, expected in enumerate(alone):
        torch.testing.assert_close(torch.cat(parts[row]), expected, **CLOSE)


def test_left_padding_equals_rows_alone(model: PreTrainedModel, method: Method) -> None:
    many = [tokens(34, seed=2), tokens(21, seed=3)]
    ids, mask = torch.zeros(2, 34, dtype=torch.long), torch.zeros(2, 34, dtype=torch.long)
    for place, row in enumerate(many):
        ids[place, 34 - len(row) :], mask[place, 34 - len(row) :] = row, 1
    with attach(model, method, auto_phase="generate") as attached:
        settings = {"max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False}
        together = model.generate(ids, attention_mask=mask, **settings)
        assert attached.reads.decode.queries == 2 * 7 * 4 * 3  # rows, steps, heads, layers
        for place, row in enumerate(many):
            alone = model.generate(row[None], attention_mask=torch.ones_like(row)[None], **settings)
            assert torch.equal(together[place, 34:], alone[0, len(row) :])


def test_reads_are_as_stated(model: PreTrainedModel, method: Method) -> None:
    heads, many = 4, [tokens(37, seed=2), tokens(23, seed=3)]
    with attach(model, method) as attached:
        rows = Rows(model, 2, attached)
        steps = [(False, [row[:-9] for row in many])]
        steps += [(True, [row[len(row) - 9 + step][None] for row in many]) for step in range(9)]
        seen = [0, 0]
        for decode, pieces in steps:
            rows.feed(pieces, decode=decode)
            ends = [start + len(piece) for start, piece in zip(seen, pieces, strict=True)]
            spans = [per_token(method, start, end) for start, end in zip(seen, ends, strict=True)]
            least, most = (heads * sum(span[side] for span in spans) for side in (0, 1))
            dense = heads * sum(
                t + 1 for start, end in zip(seen, ends, strict=True) for t in range(start, end)
            )
            assert [layer.layer for layer in attached.reads.last] == [0, 1, 2]
            for layer in attached.reads.last:
                acts = method.phase in ("both", "decode" if decode else "prefill")
                assert layer.sparse == (acts and layer.layer in attached.layers)
                assert layer.phase == ("decode" if decode else "prefill")
                assert layer.counts.queries == heads * sum(map(len, pieces))
                assert layer.counts.dense == dense
                if layer.sparse:
                    assert least <= layer.counts.read <= most < dense
                else:
                    assert layer.counts.read == dense
            seen = ends
        assert attached.reads.decode.queries == heads * 3 * 9 * 2


def test_detached_model_is_bitwise_as_before(model: PreTrainedModel, method: Method) -> None:
    row = tokens(40)
    before = model.config._attn_implementation
    dense = read_alone(model, None, row, 2)
    attached = attach(model, method)
    read_alone(model, attached, row, 2)
    attached.detach()
    assert not attached.attached
    assert model.config._attn_implementation == before
    assert torch.equal(read_alone(model, None, row, 2), dense)
    attached.detach()  # twice does nothing
    attach(model, method).detach()  # and it can be attached again


def test_two_models_do_not_mix(
    model: PreTrainedModel, method: Method, make_model: Callable[..., PreTrainedModel]
) -> None:
    row = tokens(40)
    kind = {"LlamaForCausalLM": "llama", "Qwen3ForCausalLM": "qwen3"}.get(type(model).__name__, "decoder")
    neighbour = make_model(kind, seed=5)
    plain = make_model(kind, seed=6)
    dense = read_alone(plain, None, row, 2)
    with attach(model, method) as attached:
        expected = read_alone(model, attached, row, 2)
        counted = attached.reads.decode
    with (
        attach(model, method) as attached,
        attach(neighbour, make_method("exact-top", 5, first=0, local=1)) as two,
    ):
        read_alone(neighbour, two, row, 2)
        assert torch.equal(read_alone(model, attached, row, 2), expected)
        assert torch.equal(read_alone(plain, None, row, 2), dense)
        two.detach()
        assert torch.equal(read_alone(model, attached, row, 2)[-1], expected[-1])
        assert attached.reads.decode.read == 2 * counted.read


SCALE_COUNTS = {
    "infllm-v2": "it adds up softmaxes of several heads, whose shares depend on their scale",
    "nosa": "it adds up softmaxes of several heads, whose shares depend on their scale",
    "seer-attention": "an incomplete block stands among its logits with 0",
}


def random_block(positions: int, seed: int = 0) -> QueryBlock:
    """One query behind 24 keys, two heads a group."""
    maker = torch.Generator().manual_seed(seed)
    q = torch.randn(1, 4, 1, 8, generator=maker, dtype=torch.float64)
    k = torch.randn(1, 2, 24, 8, generator=maker, dtype=torch.float64)
    v = torch.randn(1, 2, 24, 8, generator=maker, dtype=torch.float64)
    return QueryBlock(
        q=q,
        k=k,
        positions=torch.tensor([[positions]]),
        scaling=0.5,
        layer=0,
        rotate=Rotation(inv_freq=torch.tensor([1.0, 0.3, 0.1, 0.03]), interleaved=False, at_end=False),
        v=v,
    )


def test_heads_share_a_selection_as_declared(method: Method) -> None:
    block = random_block(23)
    q = block.q.clone()
    q[:, 0] = -q[:, 0]
    changed = dataclasses.replace(block, q=q)
    one, two = (method.select(each).expand(1, 4, 1, 24) for each in (block, changed))
    assert torch.equal(one[:, 2:], two[:, 2:])
    if method.per == "query head":
        assert torch.equal(one[:, 1], two[:, 1])
        assert not torch.equal(one[:, 0], two[:, 0])
    elif method.per == "layer":
        assert (one == one[:, :1]).all()
    else:
        assert torch.equal(one[:, 0], one[:, 1])


def test_selection_ignores_the_scale_of_queries(method: Method) -> None:
    if method.name in SCALE_COUNTS:
        pytest.skip(SCALE_COUNTS[method.name])
    block = random_block(22)
    for factor in (0.01, 7.0):
        assert torch.equal(
            method.select(dataclasses.replace(block, q=factor * block.q)), method.select(block)
        )


@pytest.mark.parametrize("position", [0, 1, 5, 11, 12, 23])
def test_selection_of_one_query_has_the_stated_size(method: Method, position: int) -> None:
    keep = method.select(random_block(position))
    assert not keep[..., position + 1 :].any()
    for size in keep.sum(-1).flatten().tolist():
        assert method.kv_reads_least(position + 1) <= size <= method.kv_reads(position + 1) <= position + 1
