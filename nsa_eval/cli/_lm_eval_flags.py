"""Flags and model arguments of lm-eval's that have no counterpart here, and what to use instead."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence

from nsa_eval.errors import UserError

_TRUE, _FALSE = {"true", "1", "yes"}, {"false", "0", "no"}
_INSTEAD = {
    "--use_cache": "responses are always kept, in the run's folder: name it again with -o to go on",
    "--cache_requests": "requests are built in seconds, and finished responses are kept in the run's folder",
    "--write_out": "every prompt stands in samples_*.jsonl in the run's folder",
    "--show_config": "every task's config stands in results_*.json in the run's folder",
    "--samples": "use --limit N for a trial, or a task YAML with process_docs in --include_path",
    "--predict_only": "replies and scores are written together; the replies stand in samples_*.jsonl",
    "--check_integrity": "run the task with --limit 1",
    "--max_batch_size": "batches are bounded by memory: leave --batch_size at auto, or give a number",
    "--wandb_args": "upload the run's folder afterwards: its results and samples are lm-eval's",
    "--wandb_config_args": "upload the run's folder afterwards: results_*.json holds the config",
    "--hf_hub_log_args": "upload the run's folder afterwards, with huggingface-cli upload",
    "--trackio_args": "upload the run's folder afterwards: its results and samples are lm-eval's",
}
_OF_HF = "in a config, lm: hf with lm_args: {%s: ...} hands it to lm-eval's own hf model"
_MODEL_ARGS = {
    "parallelize": "--executor ray spreads requests over GPUs; for a model larger than one, " + _OF_HF,
    "device_map": "--executor ray spreads requests over GPUs; for a model larger than one, " + _OF_HF,
    "attn_implementation": "the engine takes the model's own attention; " + _OF_HF,
    "peft": "merge the adapter (merge_and_unload, save_pretrained) and evaluate that; or " + _OF_HF,
    "delta": _OF_HF,
    "load_in_8bit": _OF_HF,
    "load_in_4bit": _OF_HF,
    "gguf_file": _OF_HF,
    "enable_thinking": "give the tokenizer a chat template that says it; or " + _OF_HF,
    "think_end_token": _OF_HF,
}


def without_lm_eval_flags(words: Sequence[str]) -> list[str]:
    """Leave out flags that are always on here, and refuse those that there is none of.

    Args:
        words: The command line of `eval`.

    Raises:
        UserError: A flag of lm-eval's that isn't supported; says what to use instead.
    """
    kept: list[str] = []
    rest = list(words)
    while rest:
        word = rest.pop(0)
        flag, equals, value = word.partition("=")
        if flag in _INSTEAD:
            raise UserError(f"{flag}: not supported: {_INSTEAD[flag]}")
        if flag == "--log_samples":  # always
            if rest and rest[0].lower() in _TRUE:
                rest.pop(0)
        elif flag == "--fewshot_as_multiturn":  # always, with a chat template
            given = value if equals else rest.pop(0) if rest and rest[0].lower() in _TRUE | _FALSE else "true"
            if given.lower() in _FALSE:
                raise UserError(
                    f"{flag} {given}: not supported: solved examples are turns of the chat, as lm-eval has "
                    "them by default; leave --apply_chat_template out to put them into one text"
                )
        elif flag in {"--verbosity", "-v"}:
            # The libraries' own logs, which are silent otherwise.
            os.environ["LMEVAL_LOG_LEVEL"] = value if equals else rest.pop(0) if rest else "INFO"
        else:
            kept.append(word)
    return kept


def refuse_model_args(given: Iterable[str]) -> None:
    """Say what to do about arguments of lm-eval's hf model that the engine has no counterpart of.

    Raises:
        UserError: One of them is given.
    """
    for key in given:
        if key in _MODEL_ARGS:
            text = _MODEL_ARGS[key]
            raise UserError(f"--model_args {key}: not supported: {text % key if '%' in text else text}")
