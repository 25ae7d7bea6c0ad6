"""Tokens of replies, and whether they ended by themselves, beside the replies of a sample."""

import json

from nsa_eval._replies import AskedReplies
from nsa_eval.engine import Request
from nsa_eval.engine._prompts import Origin
from nsa_eval.results._samples import read_samples
from nsa_eval.store import Response

SAMPLE = {
    "doc_id": 0, "doc": {"id": "a"}, "target": "x", "filter": "none", "metrics": ["score"], "score": 1.0,
    "arguments": {"gen_args_0": {"arg_0": "p", "arg_1": {}}}, "resps": [["a", "b"]],
    "filtered_resps": [["a", "b"]],
}  # fmt: skip


def request(key, doc, settings=None, kind="generate_until", task="t"):
    return Request(key=key, kind=kind, arguments=("p", settings or {}), origin=Origin(task, doc), seed=0)


def stored(*replies):
    """Replies of (tokens, whether each ended by itself)."""
    return {
        f"k{i}": Response(value="r", prompt_tokens=1, new_tokens=tokens, finished=finished)
        for i, (tokens, finished) in enumerate(replies)
    }


def described(requests, store, rows):
    asked = AskedReplies()
    asked.note(requests)
    asked.describe({"t": rows}, store)
    return rows


def test_each_reply_has_its_length_and_whether_it_ended():
    """One that ended with the last token of its budget counts as ended."""
    requests = [request(f"k{i}", 0, {"max_gen_toks": 8}) for i in range(3)]
    [row] = described(requests, stored((7, True), (8, False), (8, True)), [{"doc_id": 0}])
    assert (row["new_tokens"], row["finished"]) == ([7, 8, 8], [True, False, True])


def test_replies_stay_with_their_document_and_task():
    requests = [request("k0", 3), request("k1", 5), request("k2", 3, task="other")]
    store = stored((1, True), (2, True), (3, True))
    rows = described(requests, store, [{"doc_id": 5}, {"doc_id": 3}, {"doc_id": 4}])
    assert [row.get("new_tokens") for row in rows] == [[2], [1], None]


def test_unknown_lengths_are_not_written():
    # lm-eval's own classes tell no tokens; scored continuations are no replies.
    requests = [request("k0", 0), request("k1", 1, "x", kind="loglikelihood")]
    rows = described(requests, stored((0, None), (4, None)), [{"doc_id": 0}, {"doc_id": 1}])
    assert rows == [{"doc_id": 0}, {"doc_id": 1}]


def read(tmp_path, record):
    path = tmp_path / "samples_t.jsonl"
    path.write_text(json.dumps(record) + "\n", encoding="utf-8")
    return read_samples(path)["none"][0]


def test_a_sample_is_read_with_what_is_known_of_its_replies(tmp_path):
    doc = {"id": "a", "reply_votes": [0, -1], "reply_answers": ["4", ""]}
    sample = read(tmp_path, {**SAMPLE, "doc": doc, "new_tokens": [5, 8], "finished": [True, False]})
    assert (sample.new_tokens, sample.finished, sample.votes) == ((5, 8), (True, False), (0, -1))
    assert sample.extracted == ("4", "")
    assert sample.metrics == {"score": 1.0}


def test_a_sample_of_another_tool_lacks_it(tmp_path):
    sample = read(tmp_path, {**SAMPLE, "doc": {"id": "a", "reply_votes": "many"}})
    assert (sample.new_tokens, sample.finished, sample.votes) == ((), (), ())


def test_a_file_without_a_list_of_metrics_counts_no_tokens_as_one(tmp_path):
    record = {key: value for key, value in SAMPLE.items() if key != "metrics"}
    sample = read(tmp_path, {**record, "new_tokens": [5, 8], "finished": [True, False]})
    assert sample.metrics == {"score": 1.0}
