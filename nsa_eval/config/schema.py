"""The keys of a run's config, one class per section.

Everything is strict: a key that isn't here is an error, and so is text where a number belongs. The
docstring under each field says what it means, in which unit, and what happens when it is left out; the
documentation is made from them. Its mark (`Neutral[...]`, ...; none: it can change a response) says what it
can change, and everything that has to know goes by it: see `marks.py`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from nsa_eval.config._types import (
    BatchSize,
    Budget,
    ChatTemplate,
    Day,
    DocumentLength,
    ExecutorKind,
    Length,
    Limit,
    Name,
    PrefillChunk,
    Seeds,
    VariantName,
)
from nsa_eval.config.marks import Neutral, Request, Source


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, use_attribute_docstrings=True)

    main_key: ClassVar[str] = ""
    """The key of what people write in the section's place: `needle_single` for {task: needle_single}."""


class MethodSpec(_Section):
    """A sparse-attention method on a dense checkpoint. Keys that aren't listed are the method's own; a list
    of values makes one variant of each, as it does of the budget."""

    model_config = ConfigDict(extra="allow", strict=True, frozen=True, use_attribute_docstrings=True)
    main_key: ClassVar[str] = "name"

    name: str = Field(min_length=1)
    """Which method: `nsa-eval ls methods` lists them."""
    budget: Budget | None = None
    """KV tokens that a query reads (the method says what counts), or a share of each prompt such as 10%, in
    whole multiples of 16 tokens; a list makes one variant of each. Left out for a method without a budget,
    such as `xattention`: keys of its own decide."""

    @property
    def single_budget(self) -> int | str | None:
        """The budget of a variant, in which lists are written out; None for a method without one.

        Raises:
            ValueError: A list.
        """
        if isinstance(self.budget, list):
            raise ValueError(f"{self.name}: one budget, not a list, makes a method: {self.budget}")
        return self.budget

    @property
    def options(self) -> dict[str, Any]:
        """The method's own keys, as given."""
        return dict(self.model_extra or {})


class VariantSpec(_Section):
    """A checkpoint with config fields set, or under a sparse method. Empty: the checkpoint as it is."""

    name: Neutral[VariantName | None] = None
    """Its name in tables and folders. Default: the model's name and what differs (`nsa+n=8`,
    `dense+quest@2560`). Not for a variant with lists, which is several."""
    set: dict[str, Any] = {}
    """Fields of the checkpoint's config.json, with other values; a list makes one variant of each value (of
    several lists: of each combination). Weights stay as they are."""
    method: MethodSpec | None = None
    """A sparse-attention method."""


class ModelSpec(_Section):
    """One checkpoint to evaluate."""

    main_key: ClassVar[str] = "path"

    name: Neutral[Name]
    """Its name in tables, folders and `--set models.NAME.key=`. Default: the last part of `path`."""
    path: Source[str] = Field(min_length=1)
    """`zoo:NAME` for a bundled checkpoint, a folder with config.json and safetensors, or a hub id."""
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = "auto"
    """Number format of the weights in memory. `auto`: the checkpoint's own on a GPU, float32 on a CPU."""
    device: str = "auto"
    """`cpu`, `cuda`, `cuda:1`, ... `auto`: a GPU when there is one."""
    backend: Literal["auto", "reference", "torch", "triton"] = "auto"
    """Which NSA kernels to use; other models ignore it."""
    revision: Source[str | None] = None
    """Branch, tag or commit of a hub id. Default: its main branch."""
    trust_remote_code: bool = False
    """Run the Python code that comes with the checkpoint. Off: only architectures that are installed load."""
    chat_template: Request[ChatTemplate] = False
    """Put prompts through the tokenizer's chat template; a name picks one of several."""
    template_date: Request[Day | None] = None
    """The day, as 2026-01-31, that a chat template prints which asks for the date. Default: today, so that
    every day's prompts are new."""
    system_instruction: Request[str | None] = None
    """Text put before every prompt (in the system turn, with a chat template). Default: none."""
    max_length: Length | None = None
    """Longest prompt plus reply, in tokens. Default: what the checkpoint's config says."""
    lm: str | None = None
    """Ask it through this class of lm-eval's (`vllm`, `sglang`, `local-completions`, `hf`, ...), not by the
    engine; `path` is then the model's name. Its prompts aren't audited."""
    lm_args: dict[str, Any] = {}
    """Arguments of that class, as in lm-eval's --model_args: {base_url: ..., tokenizer: ...}. Keys and tokens
    belong into the environment."""
    variants: list[VariantSpec] = [VariantSpec()]
    """What to evaluate of it; the weights are loaded once for all. Default: the checkpoint as it is."""

    @property
    def source(self) -> dict[str, Any]:
        """How the files at `path` are found and read: keyword arguments of `nsa_models`' loaders."""
        return {"revision": self.revision, "trust_remote_code": self.trust_remote_code}

    @model_validator(mode="before")
    @classmethod
    def _default_path_and_name(cls, data: Any) -> Any:  # noqa: ANN401  (raw input)
        """A class's arguments may name the model, as they do in lm-eval; its name is the end of its path."""
        if not isinstance(data, dict):
            return data
        if data.get("lm") and isinstance(data.get("lm_args"), dict) and "path" not in data:
            arguments = dict(data["lm_args"])
            named = [arguments.pop(key) for key in ("model", "pretrained") if key in arguments]
            if len(named) == 1:
                data = {**data, "path": named[0], "lm_args": arguments}
        if "name" not in data:
            data = {"name": default_model_name(str(data.get("path", ""))), **data}
        return data


class TaskSpec(_Section):
    """One task with its parameters. Keys that aren't listed here are the task's own parameters."""

    model_config = ConfigDict(extra="allow", strict=True, frozen=True, use_attribute_docstrings=True)
    main_key: ClassVar[str] = "task"

    task: Request[str] = Field(min_length=1)
    """Name of the task: `nsa-eval ls tasks` lists them; lm-eval's own tasks, groups and tags work too."""
    alias: Request[Name | None] = None
    """Name in tables and file names. Default: the task's name. Needed where a task is used twice."""
    num_fewshot: Request[int | None] = Field(default=None, ge=0)
    """Solved examples before each question. Default: what the task says; some have none."""
    limit: Request[Limit | None] = None
    """Only so many samples: a count, or a fraction below 1; the first ones, or of a grid an even share of its
    cells. Default: the run's `limit`."""
    gen_kwargs: Request[dict[str, Any] | None] = None
    """Generation settings that replace the task's, such as {temperature: 0.7}. Default: the task's."""
    metadata: Request[dict[str, Any] | None] = None
    """What one of lm-eval's tasks reads from its metadata, as its --metadata: RULER's {max_seq_lengths:
    [4096]}. The project's own tasks take such values as keys of their own."""
    repeats: Request[int | None] = Field(default=None, ge=1, le=100_000)
    """Replies to each document. The project's tasks score a document by their mean; of lm-eval's tasks some
    use all replies, others the first. Default: what the task says, mostly 1."""
    truncation: Literal["error", "left", "middle"] | None = None
    """What becomes of this task's prompts over the model's length. Default: what the task's protocol says,
    else the engine's `truncation`."""

    @property
    def label(self) -> str:
        """The name in tables and file names."""
        return self.alias or self.task

    @property
    def params(self) -> dict[str, Any]:
        """The task's own parameters, as given."""
        return dict(self.model_extra or {})

    def with_params(self, params: Mapping[str, Any]) -> TaskSpec:
        """The same task with other parameters of its own."""
        kept = self.model_dump(include=set(type(self).model_fields))
        return TaskSpec.model_validate({**kept, **params})


class EngineSpec(_Section):
    """How requests are run."""

    batch_size: Neutral[BatchSize] = "auto"
    """Rows that run together. `auto`: as many as memory allows."""
    truncation: Literal["error", "left", "middle"] = "error"
    """What becomes of a prompt over the model's length: stop with an error, or cut its start (`left`) or its
    middle. Every cut is written to audit.json and shown."""
    prefill_chunk: Neutral[PrefillChunk] = "auto"
    """Tokens of a prompt that are run at once. `auto`: 8,192 on a CPU; on a GPU as many as keep activations
    under a GiB. Smaller needs less memory."""
    share_prefixes: Neutral[bool] = True
    """Compute the common start of several prompts once."""
    cuda_graphs: Neutral[Literal["auto", "off"]] = "auto"
    """Replay decode steps from a CUDA graph. `auto`: on a GPU, where the model's steps have fixed shapes
    (full attention, NSA). `off`: never."""
    add_bos_token: bool | None = None
    """Put the beginning-of-sequence token before prompts. Default: as the tokenizer does."""
    parity: Literal["lm-eval"] | None = None
    """`lm-eval`: do as its hf model does where that is known to be wrong: score a BOS given BOS in rolling
    log-likelihoods, cut it off with `truncation: left`, leave an EOS that the tokenizer appends in prompts,
    and let a task's generation settings win over `gen_kwargs` under another name. Default: what is right;
    the audit says where they differ."""


class CompareSpec(_Section):
    """The comparison at the end of a run with two or more models."""

    baseline: str | None = None
    """Name of the model that the others are compared with. Default: the first one."""
    confidence: float = Field(default=0.95, gt=0, lt=1)
    """Coverage of the intervals, between 0 and 1."""
    resamples: int = Field(default=10_000, ge=100, le=10_000_000)
    """Resamples of the paired bootstrap."""
    seed: int = Field(default=0, ge=0, lt=2**64)
    """Seed of the bootstrap."""


class ColumnSpec(_Section):
    """A column of a table: a score, or the mean of other columns."""

    header: str | None = Field(default=None, min_length=1)
    """What stands over it, once in a table. Default: the task's name."""
    group: str | None = None
    """What stands over it and its neighbours of the same group."""
    task: str | None = None
    """A task or group, by its name in the results."""
    metric: str | None = None
    """Its metric, as `METRIC` or `METRIC,FILTER`. Default: the main one."""
    length: DocumentLength | None = None
    """Only documents of this context length. Default: all."""
    mean: Literal["all"] | list[str] | None = None
    """Instead of a task: the mean of the columns with these headers, `all` of those before it that are no
    means. A row that lacks one of them has none."""

    @property
    def title(self) -> str:
        """What stands over it."""
        return self.header or self.task or "mean"


class RowSpec(_Section):
    """A model's row."""

    model: str = Field(min_length=1)
    """Name of the model or variant."""
    header: str | None = None
    """What the row is called. Default: the model's name."""


class ReportedRowSpec(_Section):
    """A row of figures that others published."""

    name: str = Field(min_length=1)
    """What the row is called; the table adds that it is reported."""
    values: dict[str, float]
    """By a column's header, in the table's scale."""


class ReportedSpec(_Section):
    """Published figures beside the run's own."""

    source: str = Field(min_length=1)
    """Where they stand: paper, table."""
    rows: list[ReportedRowSpec] = Field(min_length=1)
    """The rows."""


class TableSpec(_Section):
    """A table in a layout of its own, as a paper prints it: a row for each model."""

    name: Name
    """Its files are tables/NAME.md, .tex and .csv in the run's folder."""
    title: str | None = None
    """Its caption. Default: its name."""
    columns: list[ColumnSpec] = Field(min_length=1)
    """The columns."""
    rows: list[RowSpec] = []
    """The models, in this order. Default: all."""
    reported: list[ReportedSpec] = []
    """Published figures, in blocks of their own under the run's."""
    scale: Literal["points", "fraction"] = "points"
    """How scores within 0..1 are written: 93.1, or .931 as 0.931. Other metrics stay as they are."""
    digits: int | None = Field(default=None, ge=0, le=6)
    """Digits after the point. Default: 1 for points, 3 for fractions."""
    intervals: bool = True
    """Write the intervals of the run's own scores beside them."""


class ReportSpec(_Section):
    """The HTML report at the end of a run, and its tables."""

    title: str | None = None
    """Heading of the page. Default: the run's name; without a config its models and tasks."""
    tables: list[TableSpec] = []
    """Tables in a paper's layout, on the page and as files."""
    looks: int = Field(default=0, ge=0, le=100_000)
    """Of each cell of a needle task, so many documents are read once more by models with NSA, after they were
    answered, to show whether the blocks that were chosen hold the answer. No response changes. Default: 0,
    none."""
    margin: float = Field(default=2.0, gt=0, le=100)
    """How much worse than full attention a budget may be and still count as not worse, in points of 100; of
    metrics that are no shares of 1 in percent of full attention's mean."""


class ExecutorSpec(_Section):
    """Who answers the requests: this process, or workers of a Ray cluster."""

    kind: ExecutorKind = "local"
    """`local`: this process, one model on one device. `ray`: several workers (pip install nsa-eval[ray])."""
    address: str = Field(default="local", min_length=1)
    """Ray: `local` starts workers on this machine; `auto` or HOST:PORT joins a cluster that is there, whose
    machines see the run's folder and the checkpoints under the same paths."""
    workers: int | None = Field(default=None, ge=1, le=4096)
    """Ray: how many workers. Default: one for every `gpus_per_worker` GPUs there are, else 2."""
    gpus_per_worker: float | None = Field(default=None, ge=0, le=64)
    """Ray: GPUs of each worker. Default: 1 where there are GPUs, else 0."""


class RunConfig(_Section):
    """A whole run: models x tasks."""

    name: Neutral[Name]
    """Name of the run; results go to runs/NAME unless -o says otherwise. Default: the config's file name."""
    models: list[ModelSpec] = Field(min_length=1)
    """The checkpoints."""
    tasks: list[TaskSpec] = Field(min_length=1)
    """The tasks, each run on every model."""
    engine: EngineSpec = EngineSpec()
    """How requests are run."""
    compare: Neutral[CompareSpec] = CompareSpec()
    """The comparison of the models."""
    report: Neutral[ReportSpec] = ReportSpec()
    """The HTML report."""
    executor: Neutral[ExecutorSpec] = ExecutorSpec()
    """Who answers the requests. Results don't depend on it."""
    seed: Seeds = (0, 1234, 1234, 1234)
    """Seed of everything random; also the default `seed` of the project's own tasks. A list of four sets
    python's, numpy's, torch's and the few-shot sampler's, as in lm-eval. Default: lm-eval's 0, 1234, 1234,
    1234."""
    limit: Request[Limit | None] = None
    """Only so many samples of each task, for a trial: a count, or a fraction below 1; the first ones, or of a
    grid an even share of its cells. Default: all."""
    include_path: Source[list[str]] = []
    """Folders with more lm-eval task YAML files."""
    confirm_run_unsafe_code: Neutral[bool] = False
    """Run the code that models write, where a task does (HumanEval, MBPP): with your rights, no walls."""


def default_model_name(path: str) -> str:
    """Name a checkpoint by the last part of its path: `zoo:twin-nsa-64k` is twin-nsa-64k."""
    last = re.split(r"[/\\:]", path.rstrip("/\\"))[-1]
    return re.sub(r"[^A-Za-z0-9._-]+", "-", last).strip("-._") or "model"


def section_keys(section: type[BaseModel]) -> Mapping[str, str]:
    """The keys of a section and what each means (its docstring, on one line)."""
    return {name: " ".join((info.description or "").split()) for name, info in section.model_fields.items()}
