"""A variant's files: lm-eval's tracker writes them under `.partial/`, and it is checked that it did."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nsa_eval.config import Variant
from nsa_eval.errors import UserError
from nsa_eval.rundir import RunDirectory, write_json

if TYPE_CHECKING:
    from nsa_eval.engine import Engine


def stage(
    results: Mapping[str, Any],
    variant: Variant,
    engine: Engine,
    directory: RunDirectory,
    *,
    audit: list[dict[str, Any]],
    costs: dict[str, Any],
) -> None:
    """Let lm-eval's tracker write its files, and make sure that it did: it only logs what goes wrong.

    Args:
        results: What `evaluate_tasks` returned.
        variant: Whose they are.
        engine: Tells the chat template that was used.
        directory: The run's folder.
        audit: What was done to prompts, for audit.json.
        costs: What the answers took, for costs.json.

    Raises:
        UserError: Something wasn't written in full.
    """
    from lm_eval.loggers import EvaluationTracker

    samples = results["samples"]
    aggregated = {key: value for key, value in results.items() if key != "samples"}
    tracker = EvaluationTracker(output_path=str(directory.staging))
    model = variant.checkpoint
    template = engine.chat_template(model.chat_template) if model.chat_template else None
    tracker.general_config_tracker.log_experiment_args(
        model_source="nsa-eval",
        # The tracker names its folder by `pretrained`.
        model_args={"pretrained": variant.name},
        system_instruction=model.system_instruction,
        chat_template=template,
        fewshot_as_multiturn=True,
    )
    folder = directory.staging / variant.name
    if folder.exists():  # left by a killed run
        for file in folder.iterdir():
            file.unlink()
    tracker.save_results_aggregated(results=aggregated, samples=samples)
    for task, rows in samples.items():
        tracker.save_results_samples(task_name=task, samples=rows)
    write_json(folder / "audit.json", audit)
    write_json(folder / "costs.json", costs)
    _verify(folder, {task: len(rows) for task, rows in samples.items()})


def _verify(folder: Path, expected: dict[str, int]) -> None:
    trouble = UserError(
        f"{folder.parent.parent}: results could not be written in full (is the disk full?). "
        "Finished responses are kept: run the same command again"
    )
    try:
        [results] = folder.glob("results_*.json")
        json.loads(results.read_text(encoding="utf-8"))
        date = results.stem.removeprefix("results_")
        for task, count in expected.items():
            with (folder / f"samples_{task}_{date}.jsonl").open("rb") as file:
                if sum(line.endswith(b"\n") for line in file) != count:
                    raise trouble
    except (OSError, ValueError) as error:
        raise trouble from error
