"""What a run directory holds, typed."""

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from nsa_eval.looks import LooksSheet
from nsa_eval.store import Conditions, Cost


class Sample(BaseModel):
    """One document as one model answered it, under one filter."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    doc_id: int | str
    """lm-eval's index of the document within its split."""
    name: str
    """The document's own id, if it has one; lm-eval's index otherwise."""
    doc_hash: str
    """sha256 of the document: what makes two samples a pair."""
    prompt_hash: str
    """sha256 of the first request's prompt, chat template included."""
    target_hash: str
    """sha256 of the expected answer."""
    requests_hash: str
    """sha256 of everything sent: all prompts, continuations and generation settings of the document."""
    settings: tuple[str, ...]
    """The generation settings of the document's requests, as canonical JSON; empty for log-likelihoods."""
    metrics: dict[str, float]
    """Scores that are one number; a metric that is not (a list or pair, aggregated later) is left out."""
    repeats: int = 1
    """Replies that were asked for; the metrics are over all of them."""

    length: int | None = None
    """Context length of the document, in tokens, if the task has such a notion."""
    depth: float | None = None
    """Depth of the needle in percent."""
    seed: int | None = None
    """Seed that the document was made with."""
    needle: str | None = None
    answer: str | None = None
    cut: bool = False
    """Whether the task itself cut the prompt, by its own protocol."""

    prompt_end: str = ""
    """The last characters of the prompt."""
    replies: tuple[str, ...] = ()
    """Every reply, or the choice that the model found likeliest."""
    extracted: tuple[str, ...] = ()
    """What the task's filter took from the replies and scored; empty where that is the replies themselves."""
    reasons: tuple[str, ...] = ()
    """For each reply, in words of the task, what it holds instead of the answer; empty where it says none."""
    expected: tuple[str, ...] = ()
    """Every answer that counts, or the one target."""
    new_tokens: tuple[int, ...] = ()
    """Tokens of each reply; empty where they aren't known."""
    finished: tuple[bool, ...] = ()
    """Whether each reply ended before its budget did; empty where that isn't known."""
    votes: tuple[int, ...] = ()
    """For each reply a number for the answer that it gives (`nsa_tasks.replies`); empty where the task's
    replies don't vote."""

    @property
    def reply(self) -> str:
        """The first reply."""
        return self.replies[0] if self.replies else ""


class TaskResult(BaseModel):
    """One task of one model: its samples under every filter, and how it was asked."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    filters: dict[str, tuple[Sample, ...]]
    """Samples by filter name ("none" where the task has no filters), in document order."""
    config: dict[str, Any]
    """lm-eval's dump of the task's configuration."""
    version: str | None = None
    num_fewshot: int | None = None
    higher_is_better: dict[str, bool | None] = {}
    """By metric name; a metric that the task doesn't say it for is missing or None."""
    reported: dict[str, float] = {}
    """The figures that lm-eval printed, by "metric,filter"."""
    settings: dict[str, Any] = {}
    """lm-eval's run settings of this task's results file: limit, seeds, gen_kwargs, batch size, device ..."""
    context: dict[str, Any] = {}
    """lm-eval's run facts: chat template hash, system instruction hash, max_length, versions, ..."""
    results_file: Path
    samples_file: Path

    def metrics(self, filter_name: str) -> list[str]:
        """The metrics under a filter, as the configuration lists them; then others, as samples have them.

        The first document may lack the main one: one that wasn't answered, where only answers are scored.
        """
        found = dict.fromkeys(metric for sample in self.filters[filter_name] for metric in sample.metrics)
        listed = [m.get("metric") for m in self.config.get("metric_list") or [] if isinstance(m, dict)]
        return sorted(found, key=lambda metric: listed.index(metric) if metric in listed else len(listed))

    @property
    def has_lengths(self) -> bool:
        """Whether the task is a grid over context lengths, so that figures per length mean something.

        A `length` field alone is not enough: LongBench gives every record its own word count.
        """
        samples = next(iter(self.filters.values()), ())
        lengths = {sample.length for sample in samples}
        if None in lengths or not samples:
            return False
        return all(sample.depth is not None for sample in samples) or 2 * len(lengths) <= len(samples)

    @property
    def positions(self) -> tuple[int, ...]:
        """Where the buckets end that its documents are split into by position, in tokens; empty for others.

        The configuration's metadata lists them under `buckets`, and beside a metric NAME stands NAME@END, the
        same within the bucket that ends there.
        """
        metadata = self.config.get("metadata")
        listed = metadata.get("buckets") if isinstance(metadata, dict) else None
        if not isinstance(listed, list) or not all(isinstance(end, int) for end in listed):
            return ()
        names = {
            metric for samples in self.filters.values() for sample in samples for metric in sample.metrics
        }
        return tuple(end for end in listed if any(at_position(name, end) in names for name in names))


def at_position(metric: str, end: int) -> str:
    """What a metric is called within the bucket of tokens that ends at a position."""
    return f"{metric}@{end}"


class GroupResult(BaseModel):
    """A group of tasks that has a score of its own (MMLU, LongBench)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    children: tuple[str, ...]
    """Its members that have a score: tasks and groups."""
    tasks: tuple[str, ...]
    """The single tasks below it."""
    by_size: dict[str, bool]
    """Its metrics, "metric,filter", the main one first: whether documents count alike (a task by its size),
    or tasks do."""
    higher_is_better: dict[str, bool | None] = {}
    """By metric name."""


class ModelRun(BaseModel):
    """One model's results in one run directory."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    directory: Path
    """The run directory (the folder above the model's own, if it has one)."""
    tasks: dict[str, TaskResult]
    groups: dict[str, GroupResult] = {}
    """Groups of these tasks that have a score, by name."""
    config: dict[str, Any] | None = None
    """This model's entry in run.yaml, if nsa-eval wrote the directory."""
    run_config: dict[str, Any] | None = None
    """The whole of run.yaml."""
    env: dict[str, Any] | None = None
    """env.json: versions and machine."""
    audit: list[dict[str, Any]] = []
    """What was recorded about this model's requests: truncated prompts, doubled BOS and the like."""
    costs: dict[str, Cost] = {}
    """What the answers of each task took, where nsa-eval recorded it."""
    costs_by_length: dict[str, dict[int, Cost]] = {}
    """The same by the documents' lengths, where a task has some."""
    conditions: Conditions | None = None
    """On what that was measured; None where it isn't known, and then it compares with nothing."""
    looks: LooksSheet | None = None
    """Where it looked, if the run asked for that."""


class Run(BaseModel):
    """A run directory: its models, and what nsa-eval noted about the run."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    directory: Path
    models: dict[str, ModelRun]
    config: dict[str, Any] | None = None
    """run.yaml, or None for a directory that lm-eval wrote by itself."""
    env: dict[str, Any] | None = None
    """env.json, or None."""
