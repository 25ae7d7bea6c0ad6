"""What a task family is: one object that says all that anybody else has to know of it.

A family is a folder beside this file: YAMLs, a builder of documents, a scorer, a README, and an `__init__`
that offers the object as `FAMILY`. Neither this package nor the harness above it names a family anywhere:
they find the folder and ask the object.
"""

import contextlib
import os
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, NamedTuple

from nsa_tasks._errors import TaskDataError
from nsa_tasks._grid import even_order
from nsa_tasks._parameters import Parameter, pick_parameters, read_parameters, write_parameters
from nsa_tasks._yaml import load_task_yaml, task_files, yaml_chain
from nsa_tasks.data import DataSource, local_paths

_DEFAULT_BUDGET = 256
"""Tokens of a reply where neither the task nor the run says: lm-eval's own default."""

Truncation = Literal["error", "left", "middle"]
"""What becomes of a prompt that is too long: refused, or its start or middle cut."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Params:
    """A task's parameters, resolved: read, defaults filled in, checked together.

    A family's own class adds one field for each parameter, of the parameter's name. Made once (a run's plan
    does it) and handed on; nothing reads the given values again.
    """

    task: str
    """The task that they belong to."""

    def plain(self) -> dict[str, Any]:
        """The parameters as JSON values; those that the task does not take (None) are left out."""
        values = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "task"}
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in values.items()
            if value is not None
        }


class Size(NamedTuple):
    """How much a task asks of a model."""

    documents: int
    tokens: int
    """Of all requests with one reply each, at most."""


class RequestSize(NamedTuple):
    """Documents of one length, and what a reply to them may take."""

    documents: int
    tokens: int
    """Of a request with its reply, at most."""
    new_tokens: int
    """Of the reply, at most; 0 where a text is scored and nothing is decoded."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FamilyCommand:
    """A family's own command, `nsa-eval NAME`, for runs without a config."""

    summary: str
    """What `--help` says."""
    task: str
    """The task that runs when none is named."""
    options: Mapping[str, str | None]
    """Parameters that are flags, each with the text it defaults to; None leaves it to the task."""
    examples: tuple[str, ...]
    """Command lines for the end of the help."""


class TaskFamily(ABC):
    """Tasks that share parameters, documents and scoring.

    A family overrides what is abstract, and of the rest what is not true of it.
    """

    name: str
    """Its folder's name."""
    title: str
    """What it is called in prose: "Needle in a haystack"."""
    fewshot: bool = False
    """Whether `num_fewshot` applies: solved examples before each question."""
    truncation: Truncation | None = None
    """What becomes of prompts that are too long; None: what the run says. A family that cuts its own prompts
    (by a protocol of its own) says "error": nothing else may be cut off."""
    effective_score: float | None = None
    """The score, 0..1, that the mean over the family's tasks has to reach at a length for the length to count
    as one that a model can use; reports then have the family's lengths with it. None: no such threshold."""
    size_is_at_most: str = ""
    """Where `size` is far above what most documents take: as if what. Plans then say "up to", and this."""
    command: FamilyCommand | None = None
    """Its own command on the command line, if it has one."""

    @abstractmethod
    def parameters(self, task: str) -> tuple[Parameter, ...]:
        """List what a task takes. The defaults stand in its YAML."""

    @abstractmethod
    def check(self, task: str, values: Mapping[str, Any]) -> Params:
        """Check values that were read one by one for what they say together.

        Args:
            task: Task name.
            values: Every parameter of the task, in its plain form.

        Raises:
            TaskParameterError: One message for the first thing wrong.
        """

    @abstractmethod
    def size(self, params: Params) -> Size | None:
        """Count documents and tokens without a tokenizer and without data; None where only the data tells."""

    def requests(self, params: Params) -> tuple[RequestSize, ...] | None:
        """Sizes of the documents' requests, for an estimate of their time; None where only the data tells.

        By the parameter `lengths`, where there is one: as many documents of each. Else all are taken to be
        of one length.
        """
        size = self.size(params)
        if size is None or not size.documents:
            return None
        new_tokens = self.reply_tokens(params)
        lengths = getattr(params, "lengths", None)
        if isinstance(lengths, tuple) and lengths and all(isinstance(one, int) for one in lengths):
            each, more = divmod(size.documents, len(lengths))
            return tuple(
                RequestSize(each + (index < more), length, new_tokens)
                for index, length in enumerate(lengths)
                if each + (index < more)
            )
        return (RequestSize(size.documents, round(size.tokens / size.documents), new_tokens),)

    def reply_tokens(self, params: Params) -> int:
        """The budget of a reply: a parameter `new_tokens` or `budget`, or what the YAML says.

        Returns:
            0 for tasks that score texts.
        """
        content = load_task_yaml(task_files()[params.task], resolve=False)
        if content.get("output_type", "generate_until") != "generate_until":
            return 0
        for name in ("new_tokens", "budget"):
            found = getattr(params, name, None)
            if isinstance(found, int):
                return found
        budget = (content.get("generation_kwargs") or {}).get("max_gen_toks")
        return budget if isinstance(budget, int) else _DEFAULT_BUDGET

    def data_sources(self, params: Params | None = None) -> tuple[DataSource, ...]:
        """List the data sets that a task reads with these parameters; all of the family's without any.

        `nsa-eval data check` lists them, and a run that goes on notices when one of its files has changed.
        """
        return ()

    def max_request_tokens(self, params: Params) -> int | None:
        """Tokens of the longest request with its reply; None where the data decides."""
        return None

    def repeats(self, params: Params) -> int:
        """Replies asked for each document, unless the run says otherwise."""
        return 1

    def document_identity(self, document: Mapping[str, Any]) -> str:
        """What a document is known by: unlike any other of its task, and alike in every run."""
        return str(document["id"])

    def evidence(self, document: Mapping[str, Any], prompt: str) -> tuple[tuple[int, int], ...]:
        """Where a prompt says what a right reply consists of: runs can then tell whether a model looked
        there.

        Args:
            document: As it stands in a sample.
            prompt: Its request's text, chat template included.

        Returns:
            For each answer its (first character, character after the last) in the prompt; none where there
            are no such places, or where they can't be told.
        """
        return ()

    def grid(self, params: Params) -> tuple[int, ...] | None:
        """How the documents are arranged, where they are the cells of a grid.

        Returns:
            The grid's extents, the outermost first, as the documents are ordered, and last the documents of a
            cell: (lengths, depths, samples). None for documents without cells.
        """
        return None

    def sample(self, params: Params, count: int) -> tuple[int, ...]:
        """Choose `count` documents to stand for all of them: an even share of every row of a grid.

        A larger sample holds every smaller one, so that its answers can be used again.

        Returns:
            Numbers of documents in their own order; the first ones where there is no grid.
        """
        extents = self.grid(params)
        if extents is None:
            size = self.size(params)
            return tuple(range(count if size is None else min(count, size.documents)))
        return tuple(sorted(even_order(extents)[:count]))

    # What follows is the same for all families.

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the family's tasks, from its YAMLs."""
        return tuple(name for name, path in task_files().items() if path.parent.name == self.name)

    def resolve(self, task: str, given: Mapping[str, Any]) -> Params:
        """Read what was given, fill in the YAML's defaults, and check it.

        Args:
            task: One of `tasks`.
            given: What the user gave. Every key must be a parameter.

        Raises:
            TaskParameterError: An unknown parameter, or a value that cannot be used.
        """
        values = read_parameters(task, self.parameters(task), self.metadata(task), given)
        return self.check(task, values)

    def from_metadata(self, task: str, metadata: Mapping[str, Any]) -> Params:
        """Resolve the parameters out of lm-eval's metadata, where the model's arguments stand among them.

        Raises:
            TaskParameterError: A misspelt parameter, or a value that cannot be used.
        """
        siblings = [parameter.name for other in self.tasks for parameter in self.parameters(other)]
        return self.resolve(task, pick_parameters(task, self.parameters(task), siblings, metadata))

    def normal(self, task: str, given: Mapping[str, Any]) -> dict[str, Any]:
        """Write given parameters in the form that configs are compared in: 1k as 1024, "11" as 11.

        Raises:
            TaskParameterError: A value that cannot be used.
        """
        return write_parameters(task, self.parameters(task), given)

    def metadata(self, task: str) -> dict[str, Any]:
        """The metadata of a task's YAML: version, protocol, defaults of the parameters."""
        return dict(load_task_yaml(task_files()[task], resolve=False)["metadata"])

    def local_files(self, params: Params) -> tuple[Path, ...]:
        """Files and folders of the user's that the parameters name, as absolute paths.

        Of a data root those that the task reads.
        """
        named = [p for p in self.parameters(params.task) if not p.bare]
        found = [self._local(p, getattr(params, p.name)) for p in named]
        for source in self.data_sources(params):
            with contextlib.suppress(TaskDataError):  # told in full when the data is loaded
                found += [path.resolve() for path in local_paths(source, getattr(params, "data_root", None))]
        return tuple(path for path in found if path is not None)

    def sources(self, params: Params) -> tuple[Path, ...]:
        """Files and folders that decide what the task asks: its YAML, what that includes, and local ones."""
        return (*yaml_chain(task_files()[params.task]), *self.local_files(params))

    def portable(self, task: str, given: Mapping[str, Any]) -> dict[str, Any]:
        """Write local files by their absolute paths, so that given parameters mean the same from anywhere."""
        made = dict(given)
        for parameter in self.parameters(task):
            path = self._local(parameter, given.get(parameter.name))
            if path is not None and os.path.exists(path):
                made[parameter.name] = str(path) if parameter.bare else f"{parameter.scheme}:{path}"
        return made

    @staticmethod
    def _local(parameter: Parameter, value: object) -> Path | None:
        if parameter.scheme is None or not isinstance(value, str):
            return None
        scheme, colon, path = (parameter.scheme, value, value) if parameter.bare else value.partition(":")
        return Path(os.path.expanduser(path)).resolve() if colon and scheme == parameter.scheme else None
