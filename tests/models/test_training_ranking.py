"""The loss on the ranking of blocks: its value, where its gradient goes, and that training lowers it."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from nsa_kernels import BlockGeometry
from nsa_models.attention import NSAAttention
from nsa_models.train.corpus import load_corpus
from nsa_models.train.facts import FactWriter
from nsa_models.train.learner import Learner
from nsa_models.train.loop import train
from nsa_models.train.parallel import Group
from nsa_models.train.ranking import asked_positions, ranking_losses
from nsa_models.train.reading import load_recipe
from nsa_models.train.recipe import Recipe
from nsa_settings import SettingsError

Plain = dict[str, Any]
SMALL = BlockGeometry(block=8, stride=4, select_block=16, select_count=5, window=16)
OTHER = BlockGeometry(
    block=8, stride=8, select_block=8, select_count=4, window=16, first_blocks=0, last_blocks=1
)
WIDE = BlockGeometry(  # compressed keys end behind blocks that they belong to
    block=32, stride=8, select_block=8, select_count=6, window=16, first_blocks=0, last_blocks=1
)


def keys(rows: int, tokens: int, geometry: BlockGeometry, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    made = torch.Generator().manual_seed(seed)
    blocks = max(0, (tokens - geometry.block) // geometry.stride + 1)
    sizes = ((rows, tokens, 4, 6), (rows, blocks, 2, 6), (rows, tokens, 2, 6))
    q, k_cmp, k_slc = (2 * torch.randn(size, generator=made) for size in sizes)
    return q, k_cmp, k_slc


def plain_loss(
    q: list[list[float]], k_cmp: list[list[float]], k_slc: list[list[float]], t: int, geometry: BlockGeometry
) -> float:
    """One query position and one KV group (q: its heads), with loops: the definition as it is written."""

    def softmax(query: list[float], some: list[list[float]]) -> list[float]:
        powers = [math.exp(sum(map(math.prod, zip(query, k, strict=True))) / len(k) ** 0.5) for k in some]
        return [power / sum(powers) for power in powers]

    own = t // geometry.select_block
    wanted, importance = [0.0] * (own + 1), [0.0] * (own + 1)
    for head in q:
        for token, share in enumerate(softmax(head, k_slc[: t + 1])):
            wanted[token // geometry.select_block] += share / len(q)
        seen = [key for i, key in enumerate(k_cmp) if i * geometry.stride + geometry.block - 1 <= t]
        for i, share in enumerate(softmax(head, seen)) if seen else ():
            first = i * geometry.stride
            for piece in range(first, first + geometry.block, geometry.stride):
                if piece // geometry.select_block <= own:
                    importance[piece // geometry.select_block] += share
    # A block of which no compressed key is seen can't be ranked.
    free = [j for j in range(geometry.first_blocks, own - geometry.last_blocks + 1) if importance[j] > 0]
    chosen = geometry.select_count - geometry.first_blocks - geometry.last_blocks
    best = sorted(free, key=lambda j: -wanted[j])[:chosen]
    mass, total = sum(wanted[j] for j in best), sum(importance[j] for j in free)
    return sum(wanted[j] * (math.log(wanted[j] / mass) - math.log(importance[j] / total)) for j in best)


@pytest.mark.parametrize("geometry", [SMALL, OTHER, WIDE], ids=["small", "other", "wide"])
@pytest.mark.parametrize("tokens", [80, 93, 112])
def test_the_loss_is_the_definitions(geometry: BlockGeometry, tokens: int) -> None:
    q, k_cmp, k_slc = keys(2, tokens, geometry)
    positions = torch.tensor([[0, 15, 31, 48, tokens - 1], [7, 16, 33, 63, tokens - 2]])
    asked = torch.stack([q[row, at] for row, at in enumerate(positions)])
    found = ranking_losses(asked, k_cmp, k_slc, positions, geometry)
    for row, ats in enumerate(positions.tolist()):
        for i, t in enumerate(ats):
            for group in range(2):
                heads = q[row, t, 2 * group : 2 * group + 2].tolist()
                expected = plain_loss(
                    heads, k_cmp[row, :, group].tolist(), k_slc[row, :, group].tolist(), t, geometry
                )
                assert found[row, i, group].item() == pytest.approx(expected, abs=1e-5)
    assert (found > -1e-6).all()  # a divergence
    assert (found[:, -1] > 1e-4).all()


@pytest.mark.parametrize("tokens", [1, 7, 20, 33])
def test_rows_without_a_compressed_key_lose_nothing(tokens: int) -> None:
    geometry = replace(WIDE, block=40)
    q, k_cmp, k_slc = keys(1, tokens, geometry)
    assert k_cmp.shape[1] == 0
    q.requires_grad_()
    positions = torch.tensor([[0, tokens // 2, tokens - 1]])
    losses = ranking_losses(q[:, positions[0]], k_cmp, k_slc, positions, geometry)
    losses.sum().backward()
    assert losses.count_nonzero() == 0
    assert q.grad is not None
    assert not q.grad.any()


def test_a_query_that_can_choose_nothing_loses_nothing() -> None:
    q, k_cmp, k_slc = keys(1, 64, SMALL)
    for each in (q, k_cmp):
        each.requires_grad_()
    positions = torch.tensor([[0, 3, 30, 47]])  # block 0 and the last two are all there is
    losses = ranking_losses(q[:, positions[0]], k_cmp, k_slc, positions, SMALL)
    losses.sum().backward()
    assert losses.count_nonzero() == 0
    assert q.grad is not None
    assert q.grad.isfinite().all()
    assert k_cmp.grad is not None
    assert not k_cmp.grad.any()


def test_the_gradient_reaches_what_ranks_and_not_what_it_is_drawn_to() -> None:
    leaves = [each.requires_grad_() for each in keys(1, 96, SMALL)]
    q, k_cmp, k_slc = leaves
    positions = torch.tensor([[70, 95]])
    ranking_losses(q[:, positions[0]], k_cmp, k_slc, positions, SMALL).sum().backward()
    assert q.grad is not None
    assert q.grad.any()
    assert k_cmp.grad is not None
    assert k_cmp.grad.any()
    assert k_slc.grad is None


def test_descent_ranks_blocks_as_the_selected_branch_attends() -> None:
    q, k_cmp, k_slc = keys(1, 160, SMALL)
    k_cmp.requires_grad_()
    positions = torch.tensor([[159]])
    steps = torch.optim.Adam([k_cmp], lr=0.1)
    losses = []
    for _ in range(100):
        steps.zero_grad()
        loss = ranking_losses(q[:, 159:], k_cmp, k_slc, positions, SMALL).sum()
        loss.backward()
        steps.step()
        losses.append(loss.item())
    assert losses[0] > 1
    assert losses[-1] < 0.01


def test_half_of_the_asked_queries_predict_answers() -> None:
    ids = torch.arange(400).view(2, 200)
    answers = torch.zeros(2, 200, dtype=torch.bool)
    answers[0, 50:57], answers[0, 120:127], answers[1, 199] = True, True, True
    positions = asked_positions(ids, answers, 28)
    assert positions.shape == (2, 28)
    assert positions[0, :14].tolist() == [*range(49, 56), *range(119, 126)]
    assert positions[1, :14].tolist() == [198] * 14
    assert [positions[row, 14:].unique().numel() for row in range(2)] == [14, 14]
    ids[0, 0] += 5  # another text, other places
    assert asked_positions(ids, answers, 28)[0, 14:].tolist() != positions[0, 14:].tolist()


def test_a_row_without_answers_asks_within_itself() -> None:
    positions = asked_positions(torch.ones(3, 40, dtype=torch.long), torch.zeros(3, 40, dtype=torch.bool), 8)
    assert ((positions >= 0) & (positions < 40)).all()


def learner(recipe: Plain) -> tuple[Learner, Tensor, Tensor]:
    made = Recipe.model_validate(recipe)
    corpus = load_corpus(made.text)
    ids, answers = FactWriter(corpus, made.facts, 0).batch(stage=0, step=0, rows=range(2), length=256)
    return Learner(made, corpus, Group()), ids, answers


def test_rows_count_the_same_alone_and_together(recipe: Plain) -> None:
    recipe["ranking"] = {"weight": 0.5, "queries": 16}
    taught, ids, answers = learner(recipe)
    with torch.no_grad():
        together = taught.losses(ids, answers)
        alone = [taught.losses(ids[row : row + 1], answers[row : row + 1]) for row in range(2)]
    assert together[2] > 0
    for part, whole in enumerate(together):
        assert sum(each[part].item() for each in alone) == pytest.approx(whole.item(), rel=1e-4)
    assert all(m.on_keys is None for m in taught.model.modules() if isinstance(m, NSAAttention))
    taught.model.eval()  # a test has no use for it, and has the same losses of text and answers
    with torch.no_grad():
        tested = taught.losses(ids, answers)
    assert [part.item() for part in tested] == [together[0].item(), together[1].item(), 0.0]


def log(recipe: Plain) -> list[Plain]:
    train(Recipe.model_validate(recipe), log=lambda _: None)
    return [
        json.loads(line) for line in (Path(recipe["output"]) / "log.jsonl").read_text("utf-8").splitlines()
    ]


def test_training_lowers_it(recipe: Plain) -> None:
    last = []
    for weight in (1e-6, 20.0):
        recipe["ranking"] = {"weight": weight, "queries": 32}
        recipe["output"] = f"{recipe['output']}-{weight}"
        last.append(sum(row["ranking_loss"] for row in log(recipe)[-5:]))
    assert 0 < last[1] < 0.95 * last[0]


@pytest.mark.parametrize("attention", ["nsa", "full"])
def test_without_blocks_to_rank_or_without_asking_there_is_none(recipe: Plain, attention: str) -> None:
    recipe["model"]["attention"] = attention
    recipe["stages"] = [{"lengths": [256], "max_steps": 2}]
    if attention == "full":
        recipe["ranking"] = {"weight": 0.5}
    assert [row["ranking_loss"] for row in log(recipe)] == [0.0, 0.0]


@pytest.mark.parametrize(
    "change",
    [
        "ranking.weight=0",
        "ranking.queries=1",
        "ranking.layers=2",
        "model.nsa_branches=cmp+win",
        "model.nsa_select_count=3",
    ],
)
def test_a_wrong_ranking_is_refused(tmp_path: Path, change: str) -> None:
    path = Path("models/nsa_models/recipes/twin-nsa-64k.yaml")
    with pytest.raises(SettingsError, match="ranking"):
        load_recipe(path, [change])
