"""Where the variants of a run looked: asked of the executor after their results are there, kept as
looks.json.

A look is a request like any other: it has a key of its own in the store, so that a run that was killed goes
on with those that are missing, and every executor can answer it. Nothing that is scored is asked or changed
by it. Which prompts are looked at is read from the variant's samples, so that looks can be added to a
finished run.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter

from nsa_eval._conditions import store_context
from nsa_eval._counting import CountingStore, size_of
from nsa_eval._json import parse_json, read_json, read_mapping
from nsa_eval._ongoing import OngoingRun
from nsa_eval.config import RunConfig, Variant
from nsa_eval.errors import UserError
from nsa_eval.looks import FILE, PICTURES, Look, LooksSheet, NotLooked, answered_right, read_looks
from nsa_eval.progress import Progress
from nsa_eval.rundir import write_atomically
from nsa_tasks import TaskFamily, family_of

if TYPE_CHECKING:
    from nsa_eval.engine import Request
    from nsa_eval.executors import Executor, VariantFacts
    from nsa_eval.store import Response

_ANEW = "Remove the model's folder and run again: finished responses are kept."
_DENSE = "its attention reads every key"
_METHOD = "what a sparse method reads isn't recorded"
_LOOK: TypeAdapter[Look | NotLooked] = TypeAdapter(Look | NotLooked)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Candidate:
    """One document that could be looked at."""

    task: str
    document: int
    cell: tuple[Any, Any]
    right: bool | None
    cut: bool
    picture: bool = False


def looks_missing(variant: Variant, ongoing: OngoingRun) -> bool:
    """Whether a finished variant's looks are asked for and not there yet, or fewer of them."""
    wanted = ongoing.config.report.looks
    if not wanted or variant.checkpoint.lm is not None:
        return False
    file = ongoing.directory.path / variant.name / FILE
    return not file.is_file() or read_looks(file).per_cell < wanted


def look_at_finished(
    variants: Sequence[Variant], ongoing: OngoingRun, *, store: CountingStore, executor: Executor
) -> None:
    """Look where variants of one checkpoint looked whose results were there before.

    The checkpoint is loaded only where there is something to look at.

    Raises:
        ModelLoadError: A checkpoint that can't be loaded.
        UserError: A damaged file of the run, or a full disk.
    """
    import nsa_models

    loaded = False
    for variant in variants:
        known = None
        if not _Finished.read(variant, ongoing).why_not:
            model = variant.checkpoint
            if not loaded:
                ongoing.progress.say(f"{model.name}: loading")
                executor.load(model)
                loaded = True
            fingerprint = nsa_models.fingerprint_of(model.path, revision=model.revision).total
            known = (executor.use(variant), fingerprint)
        look_at(variant, known, ongoing, store=store, executor=executor)


def look_at(
    variant: Variant,
    known: tuple[VariantFacts, str] | None,
    ongoing: OngoingRun,
    *,
    store: CountingStore,
    executor: Executor,
) -> None:
    """Look where a variant looked that the executor has become, and write its looks.json.

    Args:
        variant: Its results are in place.
        known: What the executor found of the variant, and the weights' fingerprint; None where the variant
            chooses no blocks: the file then says so, and nothing is asked.
        ongoing: The run that it belongs to.
        store: Finished looks; asked first.
        executor: Has the rest made.
    """
    config, progress = ongoing.config, ongoing.progress
    finished = _Finished.read(variant, ongoing)
    sheet = LooksSheet(per_cell=config.report.looks, why_not=finished.why_not)
    if not sheet.why_not and known is not None:
        progress.say(f"{variant.name}: preparing looks")
        context = store_context(variant, *known, config)
        chosen = _chosen(finished, config)
        requests = dict(_requests(chosen, finished, config, context))
        answers = _answered(requests, variant.name, store=store, executor=executor, progress=progress)
        sheet = sheet.model_copy(update=_gathered(chosen, requests, answers))
    write_atomically(finished.folder / FILE, sheet.model_dump_json() + "\n")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Finished:
    """A variant whose files are in place."""

    folder: Path
    results: Mapping[str, Any]
    """Its results file."""
    date: str
    """As the names of its files have it."""

    @classmethod
    def read(cls, variant: Variant, ongoing: OngoingRun) -> _Finished:
        folder, file = ongoing.directory.path / variant.name, ongoing.directory.results_file(variant.name)
        if file is None:
            raise UserError(f"{folder}: its results file is gone; run again")
        return cls(
            folder=folder,
            results=read_mapping(file, _ANEW),
            date=file.stem.removeprefix("results_"),
        )

    @property
    def why_not(self) -> str:
        """Why nothing of it can be looked at, by what its results say of it; "" where it can."""
        settings = self.results.get("config", {})
        if settings.get("attention") == "nsa":
            return ""
        return _METHOD if settings.get("variant", {}).get("method") else _DENSE

    def rows(self, task: str) -> Iterator[dict[str, Any]]:
        """A task's samples with their prompts, each document once, one at a time: their file may be large."""
        path = self.folder / f"samples_{task}_{self.date}.jsonl"
        seen: set[int] = set()
        try:
            with path.open(encoding="utf-8") as lines:
                for line in lines:
                    row = parse_json(line)
                    if row["doc_id"] not in seen and isinstance(row["doc"], dict):
                        seen.add(row["doc_id"])
                        yield row
        except (OSError, KeyError, TypeError, ValueError) as error:
            raise UserError(f"{path}: damaged, expected lm-eval's samples ({error}). {_ANEW}") from error

    def cut_documents(self) -> set[tuple[str, int]]:
        """Task and number of the documents whose prompts were cut."""
        file = self.folder / "audit.json"
        events = read_json(file, _ANEW) if file.is_file() else []
        return {(event["task"], event["doc_id"]) for event in events if event.get("kind") == "truncated"}


def _chosen(finished: _Finished, config: RunConfig) -> list[_Candidate]:
    """The documents to look at: the first ones of each cell; some of each length with a picture."""
    cut, results = finished.cut_documents(), finished.results
    found: list[_Candidate] = []
    for task in results["configs"]:
        family = _family(task, config)
        if family is None:
            continue
        counts: Counter[tuple[Any, Any]] = Counter()
        mine = []
        for row in finished.rows(task):
            cell = (row["doc"].get("length"), row["doc"].get("depth"))
            if counts[cell] < config.report.looks and family.evidence(row["doc"], _prompt(row)[0]):
                counts[cell] += 1
                mine.append(
                    _Candidate(
                        task=task,
                        document=row["doc_id"],
                        cell=cell,
                        right=answered_right(row, row["metrics"], results["higher_is_better"].get(task, {})),
                        cut=(task, row["doc_id"]) in cut,
                    )
                )
        found += _with_pictures(mine)
    return found


def _with_pictures(documents: Sequence[_Candidate]) -> list[_Candidate]:
    """Mark for a picture, of each length, the right and the wrong document that are deepest inside of it."""

    def outside(one: _Candidate) -> float:
        depth = one.cell[1]
        return abs(depth - 50) if isinstance(depth, int | float) else 0.0

    drawn: set[int] = set()
    for length in dict.fromkeys(one.cell[0] for one in documents):
        for right in (True, False)[:PICTURES]:
            fitting = [
                one for one in documents if one.cell[0] == length and bool(one.right) == right and not one.cut
            ]
            if fitting:
                drawn.add(min(fitting, key=outside).document)
    return [replace(one, picture=one.document in drawn) for one in documents]


def _requests(
    chosen: Sequence[_Candidate], finished: _Finished, config: RunConfig, context: str
) -> Iterator[tuple[tuple[str, int], Request]]:
    """The request of each document whose prompt was read whole, by task and document."""
    from nsa_eval.engine import Origin, Request
    from nsa_eval.store import request_key

    wanted = {(one.task, one.document): one for one in chosen if not one.cut}
    for task in dict.fromkeys(one.task for one in chosen):
        family = _family(task, config)
        assert family is not None, "documents were chosen by it"
        for row in finished.rows(task):
            one = wanted.get((task, row["doc_id"]))
            if one is None:
                continue
            text, strip = _prompt(row)
            answers = [list(place) for place in family.evidence(row["doc"], text)]
            asked = (text.rstrip() if strip else text, {"answers": answers, "picture": one.picture})
            key = request_key(
                context=context, request_type="look", task=task, doc={}, arguments=asked, repeat=0
            )
            origin = Origin(task, row["doc_id"])
            yield (
                (task, row["doc_id"]),
                Request(key=key, kind="look", arguments=asked, origin=origin, seed=0),
            )


def _answered(
    requests: Mapping[tuple[str, int], Request],
    variant: str,
    *,
    store: CountingStore,
    executor: Executor,
    progress: Progress,
) -> dict[str, Response]:
    """The answers by key: the stored ones, and the rest by the executor."""
    distinct = list({request.key: request for request in requests.values()}.values())
    if not distinct:
        return {}
    with progress.apart(f"{variant}: looking", "look", sum(map(size_of, distinct)), len(distinct)):
        store.expect(distinct)
        looked_up = ((request.key, store.get(request.key)) for request in distinct)
        found = {key: response for key, response in looked_up if response is not None}
        for key, response in found.items():
            if not response.answers("look"):
                raise store.unfit(key, "look")
        missing = {request.key for request in distinct} - found.keys()
        if missing:
            executor.answer(distinct, missing, found.update)
    return found


def _gathered(
    chosen: Sequence[_Candidate],
    requests: Mapping[tuple[str, int], Request],
    answers: Mapping[str, Response],
) -> dict[str, Any]:
    tasks: dict[str, dict[str, Look | NotLooked]] = {}
    for one in chosen:
        request = requests.get((one.task, one.document))
        found: Look | NotLooked
        if request is None:
            found = NotLooked(why="its prompt was cut")
        else:
            found = _LOOK.validate_json(str(answers[request.key].value))
        tasks.setdefault(one.task, {})[str(one.document)] = found
    costs = [response.cost for response in answers.values() if response.cost is not None]
    return {"tasks": tasks, "seconds": round(sum(cost.prefill_seconds for cost in costs), 3)}


def _family(task: str, config: RunConfig) -> TaskFamily | None:
    """The family of a task, which may go by another name."""
    names = {spec.label: spec.task for spec in config.tasks}
    return family_of(names.get(task, task))


def _prompt(row: Mapping[str, Any]) -> tuple[str, bool]:
    """A document's prompt, and whether what follows it was scored: white space at its end goes over then."""
    arguments = list(row["arguments"]["gen_args_0"].values())
    return str(arguments[0]), len(arguments) > 1 and isinstance(arguments[1], str)
