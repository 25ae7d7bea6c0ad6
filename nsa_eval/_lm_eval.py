"""lm-eval's evaluation of loaded tasks, with all that its `simple_evaluate` records about it.

`simple_evaluate` itself would load the tasks again by its own rules, print git's complaint where the current
folder is no repository, and describe the machine anew, in seconds, for each model of a run. `evaluate` is the
public half of it that asks and scores; the records around it are made here, by lm-eval's own functions.
"""

from __future__ import annotations

import functools
import subprocess
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from nsa_eval._seeds import set_seeds
from nsa_eval._task_errors import asking_error
from nsa_eval._tasks import LoadedTasks
from nsa_eval.config import ModelSpec, RunConfig

_BOOTSTRAP_ITERS = 100_000
"""lm-eval's own default for its standard errors."""


def evaluate_tasks(engine: Any, loaded: LoadedTasks, model: ModelSpec, config: RunConfig) -> dict[str, Any]:  # noqa: ANN401
    """Ask a model all its tasks.

    Args:
        engine: The model, an lm_eval.api.model.LM.
        loaded: Its tasks.
        model: How it is asked: chat template, system instruction.
        config: The run's seeds and batch size.

    Returns:
        What `simple_evaluate` returns: lm_eval.result_schema.EvalResults, samples included.
    """
    from lm_eval import evaluate
    from lm_eval.loggers.utils import add_tokenizer_info

    from nsa_tasks.follow_up import FollowUps

    started = time.time()
    set_seeds(*config.seed[:3])  # the fourth is the tasks', for their few-shot examples
    limits = loaded.limits()
    for task in loaded.tasks.values():
        if isinstance(task, FollowUps):
            task.ask = engine.generate_until  # what follows from replies is stored and answered as they are
    try:
        results = evaluate(
            lm=engine,
            task_dict={"tasks": loaded.tasks, "groups": loaded.groups},
            bootstrap_iters=_BOOTSTRAP_ITERS,
            system_instruction=model.system_instruction,
            apply_chat_template=model.chat_template,
            fewshot_as_multiturn=True,
            confirm_run_unsafe_code=config.confirm_run_unsafe_code,
            **limits,
        )
    except Exception as error:
        raise asking_error(error) from error
    if results is None:  # only on ranks above 0, which the runner never is
        raise RuntimeError("lm-eval returned no results")
    found: dict[str, Any] = dict(results)
    found["config"] = _settings(engine, loaded, model, config)
    if counts := _metric_documents(found["samples"]):
        found["config"]["metric_documents"] = counts
    found |= {"git_hash": _git_hash(), "date": started, **describe_environment()}
    add_tokenizer_info(found, engine)
    return found


def _settings(engine: Any, loaded: LoadedTasks, model: ModelSpec, config: RunConfig) -> dict[str, Any]:  # noqa: ANN401
    """A results file's `config`, with the keys of `simple_evaluate`."""
    python_seed, numpy_seed, torch_seed, fewshot_seed = config.seed
    return {
        "model": model.lm or type(engine).__name__,
        "model_args": {"model": model.path, **model.lm_args}
        if model.lm
        else {"pretrained": model.path, "dtype": model.dtype, "revision": model.revision},
        **engine.get_model_info(),
        "batch_size": config.engine.batch_size,
        "batch_sizes": [],  # of lm-eval's own search for one, which the engine doesn't use
        "device": model.device,
        "use_cache": None,
        "limit": loaded.limit,
        "bootstrap_iters": _BOOTSTRAP_ITERS,
        "gen_kwargs": None,  # each task has its own, in its config
        "random_seed": python_seed,
        "numpy_seed": numpy_seed,
        "torch_seed": torch_seed,
        "fewshot_seed": fewshot_seed,
    }


def _metric_documents(samples: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, dict[str, int]]:
    """Documents behind each metric, for tasks where not every document has all: lm-eval keeps one count."""
    found = {}
    for task, rows in samples.items():
        counts = Counter(f"{metric},{row['filter']}" for row in rows for metric in row["metrics"])
        if len(set(counts.values())) > 1:
            found[task] = dict(counts)
    return found


@functools.cache
def describe_environment() -> dict[str, Any]:
    """What lm-eval records of machine and versions: once for all models, since it lists pip's packages."""
    from lm_eval.loggers.utils import add_env_info

    found: dict[str, Any] = {}
    add_env_info(found)
    return found


def _git_hash() -> str | None:
    """The commit of the repository around the current folder, as lm-eval names it."""
    try:
        done = subprocess.run(
            ["git", "describe", "--always"], capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
