"""lm-eval's own flags on `eval`: they work, or say what to use instead."""

import os
from typing import Any

import pytest

from nsa_eval.cli import main
from nsa_eval.cli._given import metadata_given
from nsa_eval.cli._lm_eval_flags import without_lm_eval_flags
from nsa_eval.errors import UserError
from nsa_eval.from_arguments import evaluate_config

EVAL = ["eval", "--model", "zoo:twin-full-64k", "--tasks", "needle_single", "--set", "tasks.0.lengths=[512]"]


def run(capsys: Any, *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as left:
        main([*EVAL, *arguments, "--dry-run"])
    said = capsys.readouterr()
    return int(left.value.code or 0), said.out, said.err


@pytest.mark.parametrize(
    "arguments",
    [
        ["--log_samples"],
        ["--fewshot_as_multiturn"],
        ["--fewshot_as_multiturn", "true"],
        ["--metadata", '{"depths": 3}'],
        ["--metadata", "depths=3"],
        ["--metadata", 'lengths=["1k"],depths=3'],
    ],
)
def test_what_makes_sense_works(capsys: Any, arguments: list[str]) -> None:
    code, output, errors = run(capsys, *arguments)
    assert code == 0, errors
    samples = 3 * 4 if arguments[0] == "--metadata" else 11 * 4
    assert f" {samples} " in output


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--use_cache", "x"], "--use_cache: not supported: responses are always kept"),
        (["--write_out"], "--write_out: not supported: every prompt stands in samples_"),
        (["--samples", "{}"], "--samples: not supported: use --limit N"),
        (["--wandb_args", "project=x"], "--wandb_args: not supported: upload the run's folder afterwards"),
        (["--hf_hub_log_args=x"], "--hf_hub_log_args: not supported: upload the run's folder afterwards"),
        (["--fewshot_as_multiturn", "false"], "--fewshot_as_multiturn false: not supported: solved examples"),
        (["--metadata", "{"], "--metadata {: not JSON"),
        (["--metadata", "lengths=[1k,2k]"], '[1k,2k]: in a list, text stands in quotes: ["1k","2k"]'),
        (["--model_args", "parallelize=true"], "--model_args parallelize: not supported: --executor ray"),
        (["--model_args", "peft=x"], "--model_args peft: not supported: merge the adapter"),
        (["--model_args", "attn_implementation=eager"], "lm: hf with lm_args: {attn_implementation: ...}"),
        (["--model_args", "enable_thinking=true"], "--model_args enable_thinking: not supported"),
        (["--model_args", "think_end_token=x"], "lm: hf with lm_args: {think_end_token: ...}"),
    ],
)
def test_the_others_say_what_to_use_instead(capsys: Any, arguments: list[str], says: str) -> None:
    code, _, errors = run(capsys, *arguments)
    assert code == 2
    assert says in " ".join(errors.split())


def test_verbosity_is_that_of_the_libraries_logs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LMEVAL_LOG_LEVEL", "")
    assert without_lm_eval_flags(["eval", "--verbosity", "DEBUG", "-q"]) == ["eval", "-q"]
    assert os.environ["LMEVAL_LOG_LEVEL"] == "DEBUG"


def test_metadata_is_a_parameter_of_our_tasks_and_metadata_of_lm_evals() -> None:
    [ours, theirs] = evaluate_config(
        "zoo:x", ["needle_single", "niah_single_1"], metadata={"lengths": [512]}
    )["tasks"]
    assert ours == {"task": "needle_single", "lengths": [512]}
    assert theirs == {"task": "niah_single_1", "metadata": {"lengths": [512]}}
    assert metadata_given(None) is None
    with pytest.raises(UserError, match="--metadata: expected KEY=VALUE"):
        metadata_given("x")
