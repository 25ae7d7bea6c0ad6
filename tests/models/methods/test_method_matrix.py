"""What every method must do on every kind of model; a method is tested by standing in `LISTED`."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable

import pytest
import torch
from transformers import PreTrainedModel

from nsa_models.methods import (
    Method,
    MethodError,
    QueryBlock,
    RowMethod,
    attach,
    make_method,
    methods,
    parse_method,
)

from .conftest import LISTED, Rows, full_of, random_row, read_alone, sets_of, tokens, turned

CLOSE = {"rtol": 1e-9, "atol": 1e-9}


# Methods of which a change in one head's query may move what other heads read.
POOLED = ("infllm", "ada-snapkv", "dhsa-fixed")
# Methods that choose by a product with the query, or not by the query at all; the others weigh softmaxes.
SCALE_FREE = ("exact-top", "quest", "streaming-llm", "tidal-decode", "mustafar", "dhsa-fixed")
# Methods whose budget isn't one of tokens.
READS_ALL = ("mustafar",)


def stated(method: Method, start: int, end: int, *, prompt: int, layer: int) -> tuple[int, int]:
    """Least and most KV tokens that queries at positions start..end-1 read in one head."""
    spans = [method.stated_reads(t + 1, prompt=prompt, layer=layer) for t in range(start, end)]
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
    row, full = tokens(40), full_of(method)
    # The last forward is one in which the method acts.
    steps = 0 if method.phase == "prefill" else 1
    # Prompts are sparse from the first query on, decode-only methods from the first step on.
    first = len(row) - steps if method.phase == "decode" else 0
    for layer in range(3):
        wanted = sum(range(first + 1, len(row) + 1))
        assert stated(full, first, len(row), prompt=len(row) - steps, layer=layer) == (wanted, wanted)
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


def test_selection_is_causal_as_declared(model: PreTrainedModel, method: Method) -> None:
    leaks = []
    with attach(model, method) as attached:
        for seed in range(9, 15):
            row, other = tokens(40, seed=seed + 20), tokens(40, seed=seed)
            changed = torch.cat([row[:25], other[25:]])
            one, two = (read_alone(model, attached, ids, 0) for ids in (row, changed))
            leaks.append(float((one[:25] - two[:25]).abs().max()))
            assert (one[25:] - two[25:]).abs().max() > 1e-3
            if method.lm_scores:
                break
    # One that looks at later tokens must be seen to: it may not call its log-likelihoods a model's.
    assert max(leaks) < 1e-9 if method.lm_scores else max(leaks) > 1e-3


def test_pieces_equal_the_whole_prompt_or_are_refused(model: PreTrainedModel, method: Method) -> None:
    row = tokens(40)
    with attach(model, method) as attached:
        if not method.chunked_prefill:
            rows = Rows(model, 1, attached)
            rows.feed([row[:13]])
            with pytest.raises(
                MethodError, match=f"{method.name}: it needs a prompt whole.* begins at token 13"
            ):
                rows.feed([row[13:]])
            return
        whole = read_alone(model, attached, row, 6)
        rows = Rows(model, 1, attached)
        # A last piece of one token is still prefill.
        parts = [logits for piece in row[:34].split([13, 20, 1]) for logits in rows.feed([piece])]
        for token in row[34:]:
            parts += rows.feed([token[None]], decode=True)
    torch.testing.assert_close(torch.cat(parts), whole, **CLOSE)


def test_padded_rows_equal_rows_alone(model: PreTrainedModel, method: Method) -> None:
    many = [tokens(40, seed=2), tokens(23, seed=3), tokens(31, seed=4)]
    pieces = [[13, 20, 1], [13, 4, 0], [9, 16, 0]] if method.chunked_prefill else [[34], [17], [25]]
    with attach(model, method) as attached:
        alone = [read_alone(model, attached, row, 6) for row in many]
        totals = {"prefill": attached.reads.prefill, "decode": attached.reads.decode}
        attached.reads.reset()
        rows = Rows(model, 3, attached)
        parts: list[list[torch.Tensor]] = [[], [], []]
        splits = [row[:-6].split(sizes) for row, sizes in zip(many, pieces, strict=True)]
        for step in range(len(pieces[0])):
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
        seen, fewer = [0, 0], False
        for decode, pieces in steps:
            rows.feed(pieces, decode=decode)
            ends = [start + len(piece) for start, piece in zip(seen, pieces, strict=True)]
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
                    spans = [
                        stated(method, start, end, prompt=len(row) - 9, layer=layer.layer)
                        for row, start, end in zip(many, seen, ends, strict=True)
                    ]
                    least, most = (heads * sum(span[side] for span in spans) for side in (0, 1))
                    assert least <= layer.counts.read <= most <= dense
                    fewer |= layer.counts.read < dense
                else:
                    assert layer.counts.read == dense
            seen = ends
        assert fewer == (method.name not in READS_ALL)
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


def chosen(method: Method, position: int, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
    """[4, 24] what the query at a position reads: as a decode step, else inside of a prompt of 24 tokens."""
    if isinstance(method, RowMethod):
        prompt = 24 if method.phase == "prefill" else position
        layers = [layer for layer in range(3) if layer not in method.dense_layers]
        found = sets_of(method, q, k, prompt=prompt, end=max(prompt, position + 1), layers=layers)
        layer = max(layer for layer in layers if layer not in getattr(method, "choosing", ()))
        keep = found[layer][position]
        return torch.nn.functional.pad(keep, (0, 24 - keep.shape[1]))
    positions = torch.tensor([[position]])
    query = q[:, :, position : position + 1]
    block = QueryBlock(q=query, k=k, v=k, positions=positions, scaling=0.5, layer=0, rotate=turned)
    return method.select(block).expand(1, 4, 1, 24)[0, :, 0] & block.visible[0, :, 0]


def test_heads_share_a_selection_as_declared(method: Method) -> None:
    q, k = random_row(24)
    other = q.clone()
    other[:, 0] = -other[:, 0]
    position = 20 if method.phase == "prefill" else 23
    one, two = (chosen(method, position, queries, k) for queries in (q, other))
    if method.name not in POOLED:
        assert torch.equal(one[2:], two[2:])
    if method.per == "query head":
        assert torch.equal(one[1], two[1])
        assert not torch.equal(one[0], two[0])
    elif method.per == "layer":
        assert (one == one[:1]).all()
    else:
        assert torch.equal(one[0], one[1])


@pytest.mark.parametrize("name", SCALE_FREE)
def test_selection_ignores_the_scale_of_queries(name: str) -> None:
    q, k = random_row(24)
    for options in LISTED[name]:
        method = make_method(name, **options)
        for factor in (0.01, 7.0):
            assert torch.equal(chosen(method, 20, factor * q, k), chosen(method, 20, q, k))


@pytest.mark.parametrize("position", [0, 1, 5, 11, 12, 20, 23])
def test_selection_of_one_query_has_the_stated_size(method: Method, position: int) -> None:
    keep = chosen(method, position, *random_row(24))
    assert not keep[:, position + 1 :].any()
    layer = max({*range(3)} - {*method.dense_layers, *getattr(method, "choosing", ())})
    prompt = 24 if method.phase == "prefill" else position
    least, most = method.stated_reads(position + 1, prompt=prompt, layer=layer)
    for size in keep.sum(-1).tolist():
        assert least <= size <= most <= position + 1
