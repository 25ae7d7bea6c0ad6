"""Quest against its definition, in both readings."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from nsa_models.methods import Method, MethodError, QueryBlock, attach, make_method
from nsa_models.methods.quest import Reading, page_scores, select

from .conftest import Rows, read_alone, tokens


def small(reading: Reading = "eval", budget: int = 12) -> Method:
    return make_method("quest", budget, page=4, dense_layers=(), reading=reading)


def random_row(positions: list[int], width: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Queries [B, 4, 1, 8] at `positions` and keys [B, 2, width, 8]."""
    maker = torch.Generator().manual_seed(seed)
    rows = len(positions)
    q = torch.randn(rows, 4, 1, 8, generator=maker, dtype=torch.float64)
    k = torch.randn(rows, 2, width, 8, generator=maker, dtype=torch.float64)
    return q, k, torch.tensor(positions)[:, None]


def test_page_scores_of_a_small_case() -> None:
    k = torch.tensor([[1.0, 0], [0, 1], [2, 3], [-1, -1], [0.5, 0]])[None, None]
    q = torch.tensor([[[[1.0, -2.0]]]])
    assert page_scores(q, k, torch.tensor([[4]]), 2).flatten().tolist() == [1.0, 4.0, 0.5]


def test_page_score_bounds_every_product_of_its_page() -> None:
    q, k, positions = random_row([22, 13, 0], 24)
    scores = page_scores(q, k, positions, 4)
    products = q @ k.repeat_interleave(2, dim=1).transpose(-1, -2)
    for row, t in enumerate(positions.flatten().tolist()):
        for s in range(t + 1):
            assert (scores[row, :, 0, s // 4] >= products[row, :, 0, s] - 1e-12).all()
        assert (scores[row, :, 0, t // 4 + 1 :] == 0).all()


def test_keys_behind_a_row_do_not_move_its_pages() -> None:
    q, k, positions = random_row([13], 24)
    longer = k.clone()
    longer[:, :, 14:] = 1e6
    for reading in ("eval", "kernel"):
        sets = [
            select(q, keys, positions, budget=12, page=4, reading=reading)
            for keys in (k, longer, k[:, :, :14])
        ]
        assert torch.equal(sets[0], sets[1])
        assert torch.equal(sets[0][..., :14], sets[2])


def by_definition(scores: list[float], tokens: int, budget: int, page: int, reading: Reading) -> set[int]:
    pages = -(-tokens // page)
    order = sorted(range(pages), key=lambda j: (-scores[j], j))
    if reading == "eval":
        chosen = order[: min(max(3, min(budget, tokens) // page), pages)]
    else:
        chosen = [pages - 1, *[j for j in order if j != pages - 1][: budget // page - 1]]
    return {s for j in chosen for s in range(j * page, min((j + 1) * page, tokens))}


@pytest.mark.parametrize("reading", ["eval", "kernel"])
@pytest.mark.parametrize("budget", [12, 14, 16, 40])
def test_sets_follow_the_definition(reading: Reading, budget: int) -> None:
    places = [0, 3, 4, 11, 12, 17, 23]
    q, k, positions = random_row(places, 24)
    k = k.round()  # pages of equal score
    keep = select(q.round(), k, positions, budget=budget, page=4, reading=reading)
    scores = page_scores(q.round(), k, positions, 4)
    for row, t in enumerate(places):
        for head in range(4):
            expected = by_definition(scores[row, head, 0].tolist(), t + 1, budget, 4, reading)
            assert set(keep[row, head, 0].nonzero().flatten().tolist()) == expected


@pytest.mark.parametrize(("first", "local"), [(3, 5), (8, 1), (0, 6), (4, 0)])
@pytest.mark.parametrize("pages", [1, 2, 4, 20])
def test_fixed_tokens_stand_beside_chosen_pages(first: int, local: int, pages: int) -> None:
    places = [0, 3, 4, 11, 12, 17, 23, 30, 31]
    q, k, positions = random_row(places, 32)
    method = make_method("quest", first + local + 4 * pages, page=4, first=first, local=local)
    block = QueryBlock(q=q, k=k, positions=positions, scaling=1.0, layer=0)
    keep, scores = method.select(block), page_scores(q, k, positions, 4)
    for row, t in enumerate(places):
        always = {s for s in range(t + 1) if s < first or s > t - local}
        holding = [
            j for j in range(t // 4 + 1) if not {s for s in range(4 * j, 4 * j + 4) if s <= t} <= always
        ]
        for head in range(4):
            best = sorted(holding, key=lambda j: (-float(scores[row, head, 0, j]), j))[:pages]
            expected = always | {s for j in best for s in range(4 * j, 4 * j + 4) if s <= t}
            assert set(keep[row, head, 0].nonzero().flatten().tolist()) == expected
            assert method.kv_reads_least(t + 1) <= len(expected) <= method.kv_reads(t + 1)
        assert method.index_reads(t + 1) == 2 * len(holding)


def test_what_nsa_compares_with() -> None:
    method = make_method("quest", 2560, first=128, local=512)
    # 120 pages of 16 beside 640 tokens; a head that takes the page at the window's edge finds fewer in it.
    assert (method.kv_reads(30_000), method.kv_reads_least(30_000)) == (2560, 2560)
    assert (method.kv_reads(30_005), method.kv_reads_least(30_005)) == (2560, 2549)
    assert method.kv_reads(2000) == 2000


def test_kernel_reading_always_has_the_last_page_and_eval_may_not() -> None:
    q, k, positions = random_row([23], 24)
    k[:, :, 20:] = 0.0
    q = q.abs() * k[:, :, :1].repeat_interleave(2, dim=1).sign()  # the last page scores 0, page 0 far more
    kernel = select(q, k, positions, budget=12, page=4, reading="kernel")
    evaluation = select(q, k, positions, budget=12, page=4, reading="eval")
    assert kernel[..., 20:].all()
    assert not evaluation[..., 20:].all()


@pytest.mark.parametrize(
    ("reading", "seen", "least", "most"),
    [
        ("eval", 6, 6, 6),
        ("eval", 11, 11, 11),
        ("eval", 13, 9, 12),
        ("eval", 40, 12, 12),
        ("kernel", 11, 11, 11),
        ("kernel", 13, 9, 9),
        ("kernel", 40, 12, 12),
    ],
)
def test_stated_reads(reading: Reading, seen: int, least: int, most: int) -> None:
    method = small(reading)
    assert (method.kv_reads_least(seen), method.kv_reads(seen)) == (least, most)


def test_eval_leaves_a_page_out_of_an_incomplete_row_at_any_budget() -> None:
    method = make_method("quest", 4096)
    assert method.kv_reads(100) == 96  # 100 // 16 of 7 pages: the authors' rule
    assert method.kv_reads(112) == 112
    assert make_method("quest", 4096, reading="kernel").kv_reads(100) == 100


@pytest.mark.parametrize("kind", ["llama", "decoder"])
def test_prompts_stay_dense_and_the_phase_is_not_guessed(
    make_model: Callable[..., PreTrainedModel], kind: str
) -> None:
    model, row = make_model(kind), tokens(40)
    dense = read_alone(model, None, row, 0)
    with attach(model, small()) as attached:
        assert torch.equal(read_alone(model, attached, row, 0), dense)
        rows = Rows(model, 1, attached)
        rows.feed([row[:39]])
        last = rows.feed([row[39:]])[0]  # one token on a filled cache, and still the prompt
        assert not attached.reads.last[0].sparse
        torch.testing.assert_close(last, dense[39:])
        assert attached.reads.decode.queries == 0
        rows.feed([row[:1]], decode=True)
        assert attached.reads.last[0].sparse
        assert attached.phase == "prefill"


@pytest.mark.parametrize("kind", ["llama", "decoder"])
def test_generate_decodes_by_the_method_when_asked_to(
    make_model: Callable[..., PreTrainedModel], kind: str
) -> None:
    model, row = make_model(kind), tokens(30)
    with attach(model, small(), auto_phase="generate") as attached:
        out = model.generate(row[None], max_new_tokens=6, min_new_tokens=6, do_sample=False)
        assert attached.reads.decode.queries == 5 * 4 * 3
        assert attached.reads.prefill.read == attached.reads.prefill.dense
    with attach(model, small()) as attached:
        told = read_alone(model, attached, out[0, :-1], 5)
    assert told[29:].argmax(-1).tolist() == out[0, 30:].tolist()


def test_first_two_layers_are_dense_by_default(make_model: Callable[..., PreTrainedModel]) -> None:
    model, row = make_model("llama"), tokens(60)
    with attach(model, make_method("quest", 48)) as attached:
        assert (attached.layers, attached.dense_layers) == ((2,), (0, 1))
        assert attached.notes == ("layers 0, 1 dense, as quest asks",)
        read_alone(model, attached, row, 1)
        assert [layer.sparse for layer in attached.reads.last] == [False, False, True]
        assert [layer.counts.read for layer in attached.reads.last[:2]] == [60 * 4] * 2
    short = make_model("llama", num_hidden_layers=2)
    with pytest.raises(MethodError, match="quest: nothing would be sparse in LlamaForCausalLM of 2 layers"):
        attach(short, make_method("quest", 48))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"budget": 47},
            "budget must be at least 48 KV tokens: the eval reading takes 3 pages of 16 at least, got 47",
        ),
        (
            {"budget": 15, "reading": "kernel"},
            "budget must be at least 16 KV tokens: the kernel reading takes 1 page of",
        ),
        ({"budget": 64, "first": -1}, "first must be at least 0 tokens, got -1"),
        ({"budget": 64, "first": 4, "reading": "kernel"}, 'reading must be "eval" with first or local'),
        (
            {"budget": 64, "first": 40, "local": 10},
            r"budget must be at least first \+ local \+ page = 66 KV tokens",
        ),
        ({"budget": 64, "page": 0}, "page must be at least 1 token, got 0"),
        ({"budget": 64, "reading": "paper"}, "reading must be one of eval, kernel, got 'paper'"),
    ],
)
def test_parameters_out_of_range_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(MethodError, match=f"quest: {message}"):
        make_method("quest", **options)  # type: ignore[arg-type]
