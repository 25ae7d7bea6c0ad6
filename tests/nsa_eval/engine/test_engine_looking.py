"""The engine's looks: the definition on a small model, whatever the chunk; and columns of pictures."""

import pytest
import torch

from nsa_eval.config import EngineSpec
from nsa_eval.engine import Answerer, Origin, Request
from nsa_eval.engine._looking import columns_around, look, picture_of
from nsa_eval.looks import QUERIES, Look, NotLooked
from nsa_kernels.geometry import BlockGeometry
from nsa_models.looking import recorded_blocks
from nsa_tasks.spans import answer_tokens

FACT = "the gold of London"


@pytest.fixture(scope="module")
def nsa(toys):
    return toys.make_model("nsa")


@pytest.fixture(scope="module")
def text(toys):
    return f"{toys.make_text(1, 60)} hide {FACT} under {toys.make_text(2, 70)} winter keys are"


@pytest.fixture(scope="module")
def place(text):
    return (text.index(FACT), text.index(FACT) + len(FACT))


def plainly(model, ids, answer):
    """Groups that hold each token, by loops over the blocks of one plain forward on prompt and reply."""
    with torch.no_grad(), recorded_blocks(model) as record:
        model(torch.tensor([[*ids, *answer.follow]]))
    chosen = record.blocks[:, 0].tolist()  # [L][N][H_kv][n]
    size = model.config.nsa_select_block
    by_token = []
    for step, source in enumerate(answer.sources):
        wanted = {token // size for token in source}
        holders = [wanted <= set(group) for layer in chosen for group in layer[len(ids) - 1 + step]]
        by_token.append(sum(holders))
    whole = {token // size for token in answer.whole}
    held = [sum(whole <= set(group) for group in layer[len(ids) - 1]) for layer in chosen]
    return tuple(by_token), tuple(held), chosen


@pytest.mark.parametrize("chunk", [5, 64, 8192])
def test_a_look_is_what_plain_loops_find(nsa, tokenizer, text, place, chunk):
    ids, [answer] = answer_tokens(tokenizer, text, [place])
    by_token, held, _ = plainly(nsa, ids, answer)
    found = look(nsa, ids, [answer], chunk=chunk)
    [one] = found.answers
    assert (one.by_token, one.held) == (by_token, held)
    assert 0 < sum(by_token) < 4 * len(by_token), "a case that tells holding from not holding"
    assert (one.first, one.last) == (answer.whole[0], answer.whole[-1])
    assert one.blocks == tuple(range(one.first // 8, one.last // 8 + 1))
    assert (one.forced, one.in_window, found.always) == (False, False, False)
    assert (found.grid.layers, found.grid.groups, found.grid.select_count) == (2, 2, 4)
    assert found.prompt_tokens == len(ids)


def test_what_stands_at_the_end_is_forced_and_in_the_window(nsa, tokenizer, toys):
    text = f"{toys.make_text(1, 90)} gold are"
    start = text.index(" gold are") + 1
    ids, [answer] = answer_tokens(tokenizer, text, [(start, start + 4)])
    [one] = look(nsa, ids, [answer], chunk=64).answers
    assert one.forced
    assert one.in_window
    assert one.held == (2, 2)


def test_a_picture_counts_who_chose_each_block(nsa, tokenizer, text, place):
    ids, [answer] = answer_tokens(tokenizer, text, [place])
    _, _, chosen = plainly(nsa, ids, answer)
    queries = [*range(len(ids) - QUERIES, len(ids) + len(answer.follow) - 1)]
    words = [str(query) for query in queries]
    picture = look(nsa, ids, [answer], words=words, chunk=64).picture
    assert picture.columns == tuple((block, block) for block in range(queries[-1] // 8 + 1))
    assert (picture.tokens, picture.asked) == (tuple(words), QUERIES)
    for query, row in zip(queries, picture.rows, strict=True):
        for (block, _), count in zip(picture.columns, row, strict=True):
            assert count == sum(block in group for layer in chosen for group in layer[query])


def test_blocks_of_one_column_are_counted_once_a_group():
    blocks = torch.full((1, 1, 2, 3), -1, dtype=torch.int32)
    blocks[0, 0, 0] = torch.tensor([0, 40, 41])  # two blocks of a column that several share
    blocks[0, 0, 1, 0] = 0
    picture = picture_of(blocks, 199, {150}, ["x"], asked=1)
    at = next(i for i, (first, last) in enumerate(picture.columns) if first <= 40 <= last)
    assert picture.columns[at][1] >= 41
    assert picture.rows[0][at] == 1
    assert picture.rows[0][0] == 2
    assert sum(picture.rows[0]) == 3


@pytest.mark.parametrize("count", [1, 95, 96, 97, 200, 1024, 16384])
@pytest.mark.parametrize("marked", [(), (0,), (17, 18), (5, 90), tuple(range(0, 90, 3))])
def test_columns_leave_no_block_out_and_keep_answers_apart(count, marked):
    marked = [block for block in marked if block < count]
    columns = columns_around(count, marked)
    assert [block for first, last in columns for block in range(first, last + 1)] == list(range(count))
    assert len(columns) <= 96
    for block in (*marked, 0, count - 1):
        assert (block, block) in columns


def request(text, place, *, picture=False, key="a"):
    wanted = {"answers": [list(place)], "picture": picture}
    return Request(key=key, kind="look", arguments=(text, wanted), origin=Origin("t", 0), seed=0)


def answered(model, tokenizer, requests, missing=None, **settings):
    answerer = Answerer(model, tokenizer, max_length=None, settings=EngineSpec(**settings))
    found = {}
    answerer.answer(requests, missing=missing or {r.key for r in requests}, emit=found.update)
    return found


def test_the_answerer_gives_looks_as_json_with_their_cost(nsa, tokenizer, text, place):
    found = answered(nsa, tokenizer, [request(text, place, picture=True), request(text, place, key="b")])
    ids, [answer] = answer_tokens(tokenizer, text, [place])
    seen = Look.model_validate_json(found["a"].value)
    assert seen.model_copy(update={"picture": None}) == look(nsa, ids, [answer], chunk=8192)
    assert text.endswith("".join(seen.picture.tokens[:QUERIES]))
    assert f" {FACT}".startswith("".join(seen.picture.tokens[QUERIES:]))
    assert Look.model_validate_json(found["b"].value).picture is None
    assert found["a"].prompt_tokens == len(ids)
    assert found["a"].cost.prefill_seconds > 0


def test_only_what_is_missing_is_looked_at(nsa, tokenizer, text, place):
    both = [request(text, place), request(text, place, key="b")]
    assert answered(nsa, tokenizer, both, {"b"}).keys() == {"b"}


def test_chunks_change_no_look(nsa, tokenizer, text, place):
    one, other = (answered(nsa, tokenizer, [request(text, place)], prefill_chunk=n) for n in (3, 4096))
    assert one["a"].value == other["a"].value


def test_a_prompt_that_the_model_reads_otherwise_is_not_looked_at(nsa, tokenizer, toys, place):
    long = f"{FACT} {toys.make_text(3, 700)}"
    found = answered(nsa, tokenizer, [request(long, (0, len(FACT)))], truncation="left")
    assert "can't be told" in NotLooked.model_validate_json(found["a"].value).why


def test_tokenizers_that_append_eos_are_looked_at_without_it(nsa, toys, text, place):
    appends = toys.make_tokenizer(appends_eos=True)
    found = answered(nsa, appends, [request(text, place)])
    assert found["a"].value == answered(nsa, toys.make_tokenizer(), [request(text, place)])["a"].value


def test_geometries_agree_with_what_is_stored(nsa, tokenizer, text, place):
    ids, answers = answer_tokens(tokenizer, text, [place])
    grid, geometry = look(nsa, ids, answers, chunk=64).grid, nsa.config.geometry
    assert isinstance(geometry, BlockGeometry)
    for name in ("select_block", "select_count", "first_blocks", "last_blocks", "window"):
        assert getattr(grid, name) == getattr(geometry, name)
