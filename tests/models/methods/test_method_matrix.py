"""What every method must do on every kind of model; a method is tested by standing in `LISTED`."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from nsa_models.methods import (
    Budgeted,
    Method,
    MethodError,
    RowMethod,
    attach,
    make_method,
    methods,
    parse_method,
)

from .conftest import (
    LISTED,
    Rows,
    full_of,
    random_row,
    read_alone,
    read_sets,
    small_methods,
    tokens,
    weights_folder,
    whole_prompt,
)

CLOSE = {"rtol": 1e-9, "atol": 1e-9}

# Methods whose choices see later tokens: those of a query's own block alone, of this many queries, or all.
ROW_BLOCK: dict[str, Callable[[Method], int]] = {
    "anchor-attention": lambda method: method.block * method.step,
    "block-sparse": lambda method: method.block,
    "seer-attention-prefill": lambda method: method.block,
    "xattention": lambda method: method.block,
}
LOOKS_AHEAD = {"flexprefill", "pbs-attn", "vertical-slash"}

# Methods that take one row at a time, and the others, whose choices are looked at block by block.
OF_ROWS = [method for method in small_methods() if isinstance(method, RowMethod)]
OF_QUERIES = [method for method in small_methods() if not isinstance(method, RowMethod)]
of_rows = pytest.mark.parametrize("method", OF_ROWS, ids=lambda method: method.label)
of_queries = pytest.mark.parametrize("method", OF_QUERIES, ids=lambda method: method.label)

# Methods by KV head that read everything, or whose blocks are all settled beforehand at such sizes.
SETTLED = ("mustafar", "infllm-v2", "nosa")
# Methods of rows of which a change in one head's query may move what other heads read.
POOLED = ("infllm", "ada-snapkv", "dhsa-fixed")
# Methods whose budget isn't one of tokens.
READS_ALL = ("mustafar",)

# Methods whose choices go by how weights are spread, which the scale of queries changes.
BY_WEIGHTS = {
    "anchor-attention",
    "flexprefill",
    "pbs-attn",
    "seer-attention-prefill",
    "vertical-slash",
    "xattention",
}


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
    budget = 49_152 if isinstance(method, Budgeted) else None
    weights = {name: value for name, value in method.parameters().items() if name == "weights"}
    default = make_method(method.name, budget, **weights)
    stated = "+".join(f"{field}={getattr(default, field)}" for field in default.stated)
    stated = f"{method.name}@{stated}".replace("budget=", "")
    assert default.label.startswith(stated)
    assert weights or default.label == stated
    assert (method.label == default.label) == (method == default)


def test_text_gives_the_same_method(method: Method) -> None:
    options = [
        f"{key}={'+'.join(map(str, value)) or 'none' if isinstance(value, tuple) else value}"
        for key, value in method.parameters().items()
        if key != "budget"
    ]
    budget = [str(method.budget)] if isinstance(method, Budgeted) else []
    assert parse_method(f"{method.name}:{','.join([*budget, *options])}") == method


def test_full_budget_is_dense(model: PreTrainedModel, method: Method) -> None:
    row = tokens(40)
    full = full_of(method)
    dense = read_alone(model, None, row, 1)
    with attach(model, full) as attached:
        rows = Rows(model, 1, attached)
        found, chose = [], []
        for piece, decode in ((row[:-1], False), (row[-1:], True)):
            found += rows.feed([piece], decode=decode)
            last = attached.reads.last
            assert all(layer.counts.read == layer.counts.dense for layer in last)
            chose += [layer.phase for layer in last if layer.sparse]
    torch.testing.assert_close(torch.cat(found), dense, **CLOSE)
    assert {*chose} == ({"prefill", "decode"} if method.phase == "both" else {method.phase})


def test_small_budget_is_not_dense(model: PreTrainedModel, method: Method) -> None:
    row = tokens(40)
    dense = read_alone(model, None, row, 2)
    with attach(model, method) as attached:
        sparse = read_alone(model, attached, row, 2)
    assert (sparse[-1] - dense[-1]).abs().max() > 1e-3


def changed_rows(model: PreTrainedModel, method: Method, first: int, seed: int) -> torch.Tensor:
    """Whether each position's logits move, [40], when the tokens from `first` on are others."""
    row, other = tokens(40), tokens(40, seed=seed)
    changed = torch.cat([row[:first], other[first:]])
    with attach(model, method) as attached:
        one, two = (read_alone(model, attached, ids, 0) for ids in (row, changed))
    return (one - two).abs().amax(-1) > 1e-9


@of_queries
def test_selection_is_causal(model: PreTrainedModel, method: Method) -> None:
    assert method.lm_scores == (method.name not in {*ROW_BLOCK, *LOOKS_AHEAD})
    # Causal after a query's own block of queries; that of a causal method is itself.
    block = ROW_BLOCK.get(method.name, lambda _: 1)(method)
    first = 25 // block * block
    changed = changed_rows(model, method, first, 9)
    assert changed[first:].any()
    if method.name not in LOOKS_AHEAD:
        assert not changed[:first].any()
    if method.lm_scores:
        return
    # The tokens changed are all behind these queries, and yet they choose other keys.
    begin, laters = (first, [first + block - 1]) if method.name in ROW_BLOCK else (0, [38, 34, 28])
    assert any(
        changed_rows(model, method, later, seed)[begin:later].any()
        for later in laters
        for seed in range(9, 15)
    )


@of_rows
def test_selection_of_a_row_is_causal_as_declared(model: PreTrainedModel, method: Method) -> None:
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
        whole = read_alone(model, attached, row, 6)
        rows = Rows(model, 1, attached)
        # A last piece of one token is still prefill.
        pieces = row[:34].split([13, 20, 1])
        if not method.chunked_prefill:
            rows.feed(pieces[:1])
            refused = f"{method.name}: it needs a prompt whole"
            for piece in (pieces[1], pieces[2]):
                with pytest.raises(MethodError, match=refused):
                    rows.feed([piece])
                if isinstance(method, RowMethod):
                    break  # the cache has the piece now, and what is remembered of the row hasn't
            return
        parts = [logits for piece in pieces for logits in rows.feed([piece])]
        for token in row[34:]:
            parts += rows.feed([token[None]], decode=True)
    torch.testing.assert_close(torch.cat(parts), whole, **CLOSE)


def test_blocks_of_the_attention_change_nothing(
    model: PreTrainedModel, method: Method, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = tokens(40)
    with attach(model, method) as attached:
        whole, read = read_alone(model, attached, row, 3), attached.reads.prefill
        attached.reads.reset()
        monkeypatch.setattr("nsa_models.methods._block._CELLS_CPU", 4 * 40 * 7)  # 7 queries
        torch.testing.assert_close(read_alone(model, attached, row, 3), whole, **CLOSE)
        assert attached.reads.prefill == read


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
        for given in zip(*splits, strict=True):
            for row, logits in enumerate(rows.feed(list(given))):
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


def chosen(method: Method, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
    """What a prompt's queries read, [1, H, n, n]; of a decode-only method its last query as a step."""
    block = whole_prompt(q, k, method)
    if method.phase == "decode":
        block = dataclasses.replace(block, q=q[:, :, -1:], positions=block.positions[:, -1:])
    return method.select(block).expand(1, q.shape[1], -1, -1)


SCALE_COUNTS = {
    "infllm-v2": "it adds up softmaxes of several heads, whose shares depend on their scale",
    "nosa": "it adds up softmaxes of several heads, whose shares depend on their scale",
    "seer-attention": "an incomplete block stands among its logits with 0",
    "seer-attention-threshold": "an incomplete block stands among its logits with 0",
}


def chosen_in_row(method: RowMethod, position: int, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
    """[4, 24] what the query at a position reads: as a decode step, else inside of a prompt of 24 tokens."""
    prompt = 24 if method.phase == "prefill" else position
    layers = [layer for layer in range(3) if layer not in method.dense_layers]
    found = read_sets(method, q, k, prompt=prompt, end=max(prompt, position + 1), layers=layers)
    layer = max(layer for layer in layers if layer not in getattr(method, "choosing", ()))
    keep = found[layer][position]
    return torch.nn.functional.pad(keep, (0, 24 - keep.shape[1]))


@of_queries
def test_heads_share_a_selection_as_declared(method: Method) -> None:
    moved = apart = False
    for seed in range(3):
        q, k = random_row(24, seed=seed)
        changed = q.clone()
        changed[:, 0] = -q[:, 0]
        one, two = chosen(method, q, k), chosen(method, changed, k)
        moved |= not torch.equal(one[:, 0], two[:, 0])
        assert torch.equal(one[:, 2:], two[:, 2:])
        if method.per == "query head":
            assert torch.equal(one[:, 1], two[:, 1])
        elif method.per == "layer":
            assert (one == one[:, :1]).all()
        else:
            assert torch.equal(one[:, 0], one[:, 1])
            assert torch.equal(two[:, 0], two[:, 1])
            apart |= not torch.equal(one[:, 0], one[:, 2])
    assert moved or method.per != "query head"
    assert apart or method.per != "KV head" or method.name in SETTLED


@of_rows
def test_heads_share_a_rows_selection_as_declared(method: RowMethod) -> None:
    q, k = random_row(24)
    other = q.clone()
    other[:, 0] = -other[:, 0]
    position = 20 if method.phase == "prefill" else 23
    one, two = (chosen_in_row(method, position, queries, k) for queries in (q, other))
    if method.name not in POOLED:
        assert torch.equal(one[2:], two[2:])
    if method.per == "query head":
        assert torch.equal(one[1], two[1])
        assert not torch.equal(one[0], two[0])
    elif method.per == "layer":
        assert (one == one[:1]).all()
    else:
        assert torch.equal(one[0], one[1])


@of_queries
def test_selection_ignores_the_scale_of_queries_unless_it_goes_by_weights(method: Method) -> None:
    if method.name in SCALE_COUNTS:
        pytest.skip(SCALE_COUNTS[method.name])
    by_weights = method.name in BY_WEIGHTS and method.stated != ("ratio",)
    same = []
    for seed in range(4):
        q, k = random_row(23, seed=seed)
        same += [torch.equal(chosen(method, factor * q, k), chosen(method, q, k)) for factor in (0.01, 7.0)]
    assert all(same) != by_weights


@of_queries
@pytest.mark.parametrize("count", [1, 2, 6, 12, 13, 24])
def test_selection_of_one_query_has_the_stated_size(method: Method, count: int) -> None:
    keep = chosen(method, *random_row(count))
    for row, position in enumerate(range(count - keep.shape[2], count)):
        assert not keep[:, :, row, position + 1 :].any()
        for size in keep[:, :, row].sum(-1).flatten().tolist():
            assert (
                method.kv_reads_least(position + 1) <= size <= method.kv_reads(position + 1) <= position + 1
            )
    assert method.index_reads(count) >= 0


@of_rows
@pytest.mark.parametrize("position", [0, 1, 5, 11, 12, 20, 23])
def test_selection_of_a_rows_query_has_the_stated_size(method: RowMethod, position: int) -> None:
    keep = chosen_in_row(method, position, *random_row(24))
    assert not keep[:, position + 1 :].any()
    layer = max({*range(3)} - {*method.dense_layers, *getattr(method, "choosing", ())})
    prompt = 24 if method.phase == "prefill" else position
    least, most = method.stated_reads(position + 1, prompt=prompt, layer=layer)
    for size in keep.sum(-1).tolist():
        assert least <= size <= most <= position + 1


# Keys and mean keys read to choose, by the query at position 9999: of what a block of queries or a whole
# prompt reads together, its share, rounded up.
INDEX_READS: dict[str, tuple[dict[str, Any], int]] = {
    "anchor-attention": ({}, 3 * 2048 // 128),
    "block-sparse": ({"budget": 6400}, 3),
    "dhsa-fixed": ({"budget": 2560}, -(-1256 // 64)),
    "exact-top": ({"budget": 2560}, 10_000),
    "h2o": ({"budget": 2560}, 0),
    "infllm": ({"budget": 2560}, (9999 - 640) // 128),
    "flexprefill": ({}, 128 + 1),
    "moba": ({"budget": 49_152}, 2),
    "pbs-attn": ({}, 128 + 1),
    "power-attention": ({}, 0),
    "quest": ({"budget": 2560}, 2 * 625),
    "s2-attention": ({}, 0),
    "seer-attention-prefill": ({"weights": weights_folder()}, 3),
    "seer-attention-threshold": ({"weights": weights_folder()}, 156),
    "streaming-llm": ({"budget": 512}, 0),
    "vertical-slash": ({"budget": 7096}, 64),
    "xattention": ({}, 625),
}


@pytest.mark.parametrize("name", list(INDEX_READS))
def test_choosing_costs_as_stated(name: str) -> None:
    options, expected = INDEX_READS[name]
    assert make_method(name, **options).index_reads(10_000) == expected
