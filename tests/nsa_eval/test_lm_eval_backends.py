"""Models asked through lm-eval's own classes: the same plan, store and report, with a server on loopback."""

import json
import math
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path

import pytest

import nsa_eval
from nsa_eval.cli import main
from nsa_eval.config import load_config
from nsa_eval.errors import ConfigError, UserError

STUBS = Path(__file__).parent / "stubs"


class Server(ThreadingHTTPServer):
    """Answers as OpenAI's completions do, deterministically: what it says of a prompt depends on it alone."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.asked, self.fails_after = [], math.inf
        self.url = f"http://127.0.0.1:{self.server_port}/v1"
        threading.Thread(target=self.serve_forever, daemon=True).start()


class _Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append(body)
        if len(self.server.asked) > self.server.fails_after:
            self.send_error(503)
            return
        chat = self.path.endswith("chat/completions")
        prompts = [body["messages"]] if chat else body["prompt"]
        if isinstance(prompts, str) or (prompts and isinstance(prompts[0], int)):
            prompts = [prompts]
        choices = [{"index": i, **_choice(prompt, body, chat)} for i, prompt in enumerate(prompts)]
        text = json.dumps({"choices": choices}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def do_GET(self):
        self.send_error(404)

    def log_message(self, *_):
        pass


def log_probability(token):
    return -(token % 7 + 1) / 8


def reply_to(prompt):
    return f"reply {len(str(prompt))}"


def _choice(prompt, body, chat):
    if chat:
        return {"message": {"role": "assistant", "content": reply_to(prompt)}}
    if not body.get("echo"):
        return {"text": reply_to(prompt)}
    scores = [log_probability(token) for token in prompt]
    # Even tokens are the likeliest of their place.
    tops = [{"a": s, "b": s if t % 2 == 0 else s + 0.1} for t, s in zip(prompt, scores, strict=True)]
    return {"text": "", "logprobs": {"token_logprobs": [*scores, -1.0], "top_logprobs": [*tops, {"x": -1.0}]}}


@pytest.fixture
def server(monkeypatch):
    if find_spec("tenacity") is None:
        monkeypatch.syspath_prepend(str(STUBS))
        for name in ("lm_eval.models.api_models", "lm_eval.models.openai_completions"):
            monkeypatch.delitem(sys.modules, name, raising=False)
    started = Server()
    yield started
    started.shutdown()
    started.server_close()


@pytest.fixture(autouse=True)
def light_report(monkeypatch):
    monkeypatch.setattr(
        "nsa_eval.report.render_report", lambda directory, *, out, **_: out.write_text("page")
    )


@pytest.fixture
def tasks(tmp_path):
    """A folder with a task of choices and one of replies, six documents each."""
    rows = [{"q": f"Which of {i}?", "choices": ["left", "right", "up"], "a": i % 3} for i in range(6)]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    shared = f"""
dataset_path: json
dataset_kwargs: {{data_files: {{test: {tmp_path}/data.jsonl}}}}
test_split: test
doc_to_text: "{{{{q}}}}"
metadata: {{version: 1}}
"""
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks/picks.yaml").write_text(
        f"task: picks\noutput_type: multiple_choice\ndoc_to_target: a\n{shared}"
        "doc_to_choice: '{{choices}}'\n"
        "metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]\n"
    )
    (tmp_path / "tasks/says.yaml").write_text(
        f"task: says\noutput_type: generate_until\ndoc_to_target: 'reply'\n{shared}"
        "generation_kwargs: {until: ['\\n'], max_gen_toks: 8, do_sample: false}\n"
        "metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]\n"
    )
    return str(tmp_path / "tasks")


def entry(server, checkpoint, **changes):
    """A model behind the server, in tokens of a tiny checkpoint."""
    return {
        "name": "served",
        "path": "some-model",
        "lm": "local-completions",
        "lm_args": {
            "base_url": f"{server.url}/completions",
            "tokenizer": str(checkpoint),
            "tokenizer_backend": "huggingface",
            "max_length": 1024,
            "max_retries": 1,
        },
        **changes,
    }


def evaluate(models, names, folder, tasks, **keys):
    return nsa_eval.evaluate(models, names, output=str(folder), include_path=[tasks], progress=False, **keys)


def samples(folder, task):
    [file] = Path(folder).glob(f"samples_{task}_*.jsonl")
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_choices_are_scored_by_the_servers_log_probabilities(server, tasks, tiny_checkpoints, tmp_path):
    from transformers import AutoTokenizer

    evaluate([entry(server, tiny_checkpoints[0])], ["picks"], tmp_path / "run", tasks)
    tokenizer = AutoTokenizer.from_pretrained(tiny_checkpoints[0])
    for sample in samples(tmp_path / "run/served", "picks"):
        for choice, [[score, greedy]] in zip(sample["doc"]["choices"], sample["resps"], strict=True):
            ids = tokenizer(f" {choice}", add_special_tokens=False)["input_ids"]
            assert float(score) == pytest.approx(sum(map(log_probability, ids)))
            assert (str(greedy) == "True") == all(token % 2 == 0 for token in ids)


def test_lm_evals_hf_gives_the_engines_responses(tmp_path):
    """A checkpoint of the zoo by both, on the device that is there."""
    models = [
        {"name": "engine", "path": "zoo:twin-full-64k", "dtype": "float32"},
        {"name": "theirs", "path": "zoo:twin-full-64k", "lm": "hf", "lm_args": {"dtype": "float32"}},
    ]
    nsa_eval.needle(
        models, lengths=["256"], depths=3, samples=2, output=str(tmp_path / "run"), progress=False
    )
    ours, theirs = (
        {
            sample["doc_hash"]: (sample["resps"], sample["score"])
            for sample in samples(tmp_path / "run" / name, "needle_single")
        }
        for name in ("engine", "theirs")
    )
    assert len(ours) == 6
    assert ours == theirs


def test_a_finished_response_is_never_asked_for_again(server, tasks, tiny_checkpoints, tmp_path):
    models = [entry(server, tiny_checkpoints[0])]
    first = evaluate(models, ["picks", "says"], tmp_path / "run", tasks)
    asked = len(server.asked)
    assert asked > 0
    for file in (tmp_path / "run/served").iterdir():
        file.unlink()
    again = evaluate(models, ["picks", "says"], tmp_path / "run", tasks)
    assert len(server.asked) == asked
    assert [score.value for score in again.models[0].scores] == [
        score.value for score in first.models[0].scores
    ]


def test_a_server_that_goes_away_loses_nothing(server, tasks, tiny_checkpoints, tmp_path):
    models = [entry(server, tiny_checkpoints[0])]
    server.fails_after = 3
    with pytest.raises(
        UserError, match=r"lm-eval's local-completions failed on says \(generate_until\)"
    ) as error:
        evaluate(models, ["says"], tmp_path / "run", tasks)
    assert "503" in str(error.value)
    stored = (tmp_path / "run/store/responses.jsonl").read_text().splitlines()
    assert len(stored) == 3
    server.fails_after = math.inf
    evaluate(models, ["says"], tmp_path / "run", tasks)
    assert len(server.asked) == 4 + 3
    replies = {sample["resps"][0][0] for sample in samples(tmp_path / "run/served", "says")}
    assert replies == {reply_to(body["prompt"][0]) for body in server.asked[4:]} | {
        reply_to(body["prompt"][0]) for body in server.asked[:3]
    }


def test_other_arguments_are_another_model(server, tasks, tiny_checkpoints, tmp_path):
    one = entry(server, tiny_checkpoints[0])
    other = entry(server, tiny_checkpoints[0], name="seeded")
    other["lm_args"] = {**one["lm_args"], "seed": 7}
    evaluate([one, other], ["says"], tmp_path / "run", tasks)
    assert [body["seed"] for body in server.asked] == [1234] * 6 + [7] * 6


def test_it_is_compared_with_a_checkpoint_of_ours(server, tasks, tiny_checkpoints, tmp_path):
    models = [{"name": "ours", "path": str(tiny_checkpoints[0])}, entry(server, tiny_checkpoints[0])]
    result = evaluate(models, ["picks"], tmp_path / "run", tasks)
    assert result.comparison is not None
    assert result.comparison.rows[0].n == 6
    assert any("served: asked through a class of lm-eval's" in note for note in result.notes)
    assert any("served: asked through a class of lm-eval's" in note for note in result.comparison.notes)


def test_needles_are_sized_by_the_tokenizer_that_is_named(server, tasks, tiny_checkpoints, tmp_path):
    task = {"task": "needle_single", "lengths": [256], "depths": 1, "samples": 1, "new_tokens": 8}
    evaluate([entry(server, tiny_checkpoints[0])], [task], tmp_path / "run", tasks)
    [body] = server.asked
    assert 256 - 8 - 12 < len(body["prompt"][0]) <= 256 - 8  # whole words of filler
    nameless = entry(server, tiny_checkpoints[0])
    del nameless["lm_args"]["tokenizer"]
    with pytest.raises(UserError, match=r"names no tokenizer: add lm_args: \{tokenizer: PATH\}"):
        evaluate([nameless], [task], tmp_path / "other", tasks)


def test_a_chat_server_needs_no_tokenizer(server, tasks, tmp_path):
    model = {"name": "chat", "path": "m", "lm": "local-chat-completions", "chat_template": True,
             "lm_args": {"base_url": f"{server.url}/chat/completions", "max_retries": 1}}  # fmt: skip
    result = evaluate([model], ["says"], tmp_path / "run", tasks)
    assert server.asked[0]["messages"] == [{"role": "user", "content": "Which of 0?"}]
    assert any("no tokenizer, so no tokens are counted" in event["detail"] for event in result.audit)
    with pytest.raises(UserError, match="Loglikelihood is not supported for chat completions"):
        evaluate([model], ["picks"], tmp_path / "other", tasks)


def test_the_command_line_names_it_as_lm_eval_does(server, tasks, tiny_checkpoints, tmp_path, capsys):
    arguments = (
        f"model=some-model,base_url={server.url}/completions,tokenizer={tiny_checkpoints[0]},"
        "tokenizer_backend=huggingface,max_retries=1"
    )
    with pytest.raises(SystemExit) as left:
        main(
            ["eval", "--model", "local-completions", "--model_args", arguments, "--tasks", "says",
             "--include_path", tasks, "-o", str(tmp_path / "run"), "--quiet"]
        )  # fmt: skip
    assert left.value.code in (0, None), capsys.readouterr().err
    assert {body["model"] for body in server.asked} == {"some-model"}
    assert len(samples(tmp_path / "run/some-model", "says")) == 6


BASE = {"models": [{"path": "m", "lm": "vllm"}], "tasks": [{"task": "arc_easy"}]}


@pytest.mark.parametrize(
    ("model", "says"),
    [
        ({"lm": "vlm"}, "models[0].lm: lm-eval has no model class 'vlm'; did you mean 'vllm'?"),
        ({"lm_args": {"auth_token": "s"}}, "models[0].lm_args.auth_token: would stand in run.yaml"),
        ({"dtype": "float16"}, "models[0].dtype: vllm loads the model itself: give it in lm_args"),
        ({"variants": [{"set": {"a": 1}}]}, "models[0].variants: only the engine's own models have variants"),
        ({"lm": None, "lm_args": {"a": 1}}, "models[0].lm_args: arguments of no class"),
        ({"lm_args": {"model": "n"}}, "models[0].lm_args.model: the model is named twice"),
    ],
)
def test_what_a_class_of_lm_evals_cannot_take_is_refused(model, says):
    with pytest.raises(ConfigError) as caught:
        load_config(BASE | {"models": [BASE["models"][0] | model]})
    assert says in str(caught.value)


def test_a_package_that_is_missing_is_named(tasks, tmp_path):
    with pytest.raises(UserError, match=r"m: lm-eval's vllm needs a package .*lm-eval\[vllm\]"):
        evaluate([{"path": "m", "lm": "vllm"}], ["says"], tmp_path / "run", tasks)


def test_the_models_name_may_stand_in_its_arguments():
    data = {"models": [{"lm": "vllm", "lm_args": {"pretrained": "a/b", "x": 1}}], "tasks": BASE["tasks"]}
    [model] = load_config(data).models
    assert (model.path, model.name, model.lm_args) == ("a/b", "b", {"x": 1})
