"""The jobs of a run: every variant of every model with every task, each with a stable id and its size.

Of groups, every member is a job.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nsa_eval.config import Member, ModelSpec, RunConfig, TaskSpec, Variant, all_variants, expand
from nsa_eval.config.marks import Effect, own_values, without_neutral
from nsa_tasks import Params, RequestSize, family_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One task on one variant of a model."""

    id: str
    """Readable and stable: the same job has the same id in every run, on every machine."""
    variant: Variant
    """What is asked."""
    task: TaskSpec
    """The task, with the run's seed and limit filled in."""
    params: Params | None
    """The task's own parameters, resolved once for all models; None for lm-eval's tasks, which take none."""
    settings: Mapping[str, Any]
    """Keys of the task's YAML that its group sets."""
    group_files: tuple[Path, ...]
    """YAML files of the groups that it runs for."""
    samples: int | None
    """Documents; None where only the data tells, which isn't loaded for a plan (of lm-eval's own tasks)."""
    tokens: int | None
    """Prompt tokens plus generation budget over all samples; None when `samples` is."""
    at_most: str = ""
    """Where `tokens` is far above what most documents take: as if what."""

    @property
    def model(self) -> ModelSpec:
        """The checkpoint."""
        return self.variant.checkpoint


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """All jobs of a run, in the order in which they run: variant by variant."""

    jobs: tuple[Job, ...]
    """The jobs."""

    @property
    def samples(self) -> int:
        """Documents of all jobs whose size is known."""
        return sum(job.samples or 0 for job in self.jobs)

    @property
    def tokens(self) -> int:
        """Tokens of all jobs whose size is known."""
        return sum(job.tokens or 0 for job in self.jobs)

    @property
    def at_most(self) -> tuple[str, ...]:
        """Why `tokens` is an upper bound, each reason once; none where it is what the run takes."""
        return tuple(dict.fromkeys(job.at_most for job in self.jobs if job.at_most))

    @property
    def complete(self) -> bool:
        """Whether the size of every job is known."""
        return all(job.samples is not None for job in self.jobs)

    def of(self, variant: str) -> tuple[Job, ...]:
        """The jobs of one variant, by its name."""
        return tuple(job for job in self.jobs if job.variant.name == variant)


def make_plan(config: RunConfig) -> Plan:
    """List the jobs of a run, without loading weights, tokenizers or data.

    Args:
        config: A checked config.

    Returns:
        Jobs in running order.

    Example:
        >>> [job.id for job in make_plan(load_config("quickstart")).jobs][0]
        'nsa-needle_single-...'
    """
    members = expand(config.tasks).tasks
    tasks = [resolve_task(member.spec, config) for member in members]
    params = [resolve_params(task) for task in tasks]
    sizes = [_size(task, own) for task, own in zip(tasks, params, strict=True)]
    return Plan(
        jobs=tuple(
            Job(
                id=_job_id(variant, task, member, config),
                variant=variant,
                task=task,
                params=own,
                settings=member.settings,
                group_files=member.files,
                samples=samples,
                tokens=tokens,
                at_most=_at_most(task),
            )
            for variant in all_variants(config)
            for member, task, own, (samples, tokens) in zip(members, tasks, params, sizes, strict=True)
        )
    )


def resolve_task(task: TaskSpec, config: RunConfig) -> TaskSpec:
    """Fill in what a task takes from the run: its `limit`, and for the project's own tasks the `seed`."""
    update: dict[str, object] = {}
    if config.limit is not None and (task.limit is None or (task.limit > config.limit and config.limit >= 1)):
        update["limit"] = config.limit  # of two counts the smaller
    family = family_of(task.task)
    takes = {p.name for p in family.parameters(task.task)} if family else set()
    if "seed" in takes and "seed" not in task.params and config.seed[0] is not None:
        update["seed"] = config.seed[0]
    return TaskSpec.model_validate(task.model_dump() | update) if update else task


def resolve_params(task: TaskSpec) -> Params | None:
    """Resolve the task's own parameters; the only place of a run that does.

    Raises:
        TaskParameterError: A value that the task can't use (a checked config has none).
    """
    family = family_of(task.task)
    return None if family is None else family.resolve(task.task, task.params)


def limited(samples: int, limit: int | float | None) -> int:
    """How many of `samples` documents a limit leaves (fractions are rounded up, as lm-eval does)."""
    if limit is None:
        return samples
    return min(samples, math.ceil(samples * limit) if limit < 1 else int(limit))


def sample_of(task: TaskSpec, params: Params | None, documents: int) -> tuple[int, ...] | None:
    """Which documents a limit leaves; None for the first ones, as lm-eval takes them.

    Args:
        task: The task, with its limit.
        params: Its own parameters, resolved.
        documents: How many it has.
    """
    family = family_of(task.task)
    kept = limited(documents, task.limit)
    if family is None or params is None or kept == documents or family.grid(params) is None:
        return None
    return family.sample(params, kept)


def repeats_of(task: TaskSpec, params: Params | None) -> int | None:
    """Replies to each document: what the config says, else the task family; None leaves it to the task."""
    family = family_of(task.task)
    if task.repeats is not None or family is None or params is None:
        return task.repeats
    return family.repeats(params)


def requests_of(job: Job) -> tuple[RequestSize, ...] | None:
    """Sizes of a job's requests, one reply each, as its limit leaves them; None where only the data tells."""
    family = family_of(job.task.task)
    if family is None or job.params is None or not job.samples:
        return None
    found = family.requests(job.params)
    if not found:
        return found
    # A limit takes documents of a grid evenly: the shares of lengths are kept, to a document.
    share = job.samples / sum(one.documents for one in found)
    ends = [round(end * share) for end in itertools.accumulate(one.documents for one in found)]
    counts = [end - begin for begin, end in zip([0, *ends], ends, strict=False)]
    sizes = (one._replace(documents=count) for one, count in zip(found, counts, strict=True))
    return tuple(one for one in sizes if one.documents)


def _size(task: TaskSpec, params: Params | None) -> tuple[int | None, int | None]:
    family = family_of(task.task)
    if family is None or params is None:
        return None, None
    size = family.size(params)
    if size is None:
        return None, None
    documents, tokens = size
    kept = limited(documents, task.limit)
    tokens *= repeats_of(task, params) or 1
    return kept, round(tokens * kept / documents) if documents else 0


def _at_most(task: TaskSpec) -> str:
    family = family_of(task.task)
    return "" if family is None else family.size_is_at_most


def _job_id(variant: Variant, task: TaskSpec, member: Member, config: RunConfig) -> str:
    model = without_neutral(variant.checkpoint)
    del model["variants"]
    content: dict[str, Any] = {
        "model": model | variant.settings,
        "task": without_neutral(task),
        "engine": without_neutral(config.engine),
        "run": own_values(config, Effect.RESPONSE),
    }
    if member.settings:
        content["settings"] = member.asked
    digest = hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()
    return f"{variant.name}-{task.label}-{digest[:8]}"
