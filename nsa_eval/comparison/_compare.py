"""The comparison itself: picks the models, checks that they were asked alike, fills the rows."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from nsa_eval.comparison._mismatch import Mismatch, ProtocolMismatchError
from nsa_eval.comparison._power import POWER
from nsa_eval.comparison._protocol import ALLOWABLE, mismatches, notes
from nsa_eval.comparison._rows import Draft, RowMaker
from nsa_eval.comparison._stored import digest
from nsa_eval.comparison._types import Comparison, ModelInfo
from nsa_eval.errors import UserError
from nsa_eval.results import ModelRun, Run, load_run, origin_of, outline

CONFIDENCE = 0.95
RESAMPLES = 10_000
SEED = 0


def compare(
    runs: Sequence[str | Path | Run] | str | Path | Run,
    *,
    baseline: str | None = None,
    confidence: float = CONFIDENCE,
    resamples: int = RESAMPLES,
    seed: int = SEED,
    metrics: Sequence[str] | None = None,
    tasks: Sequence[str] | None = None,
    allow: Sequence[str] = (),
) -> Comparison:
    """Compares models on the same documents: differences, intervals, tests, and what could have been seen.

    Every model but the baseline is a candidate and is compared with it, task by task and metric by metric.
    Holm's correction covers the headline metrics of all candidates together (the main metric of every task; a
    group's in place of its members', which are a family of their own, as further metrics are). Example:

        comparison = compare(["runs/quickstart"], baseline="dense")
        print(to_table(comparison, "md"))

    Args:
        runs: Run directories ("DIR", "DIR:model", or loaded by `load_run`); two models of one directory or of
            several.
        baseline: Name of the model that the others are compared with; by default the one that run.yaml
            names, else the first.
        confidence: Level of all intervals; 1 - confidence is the level of the tests.
        resamples: Bootstrap resamples, and most sign flips of a permutation test.
        seed: Of both. The same seed gives the same numbers, whatever else is compared.
        metrics: Only these, as "acc" or "acc,none" (metric, filter); all by default.
        tasks: Only these tasks and groups; all by default. The models may then differ in the others.
        allow: Differences that are meant, of chat_template, system_instruction and truncation: an ablation.
            The comparison and every table say so.

    Raises:
        ProtocolMismatchError: Tasks, documents or protocol differ; lists all differences.
        UserError: Fewer than two models, an unknown name, or a value out of range.
    """
    _check_ranges(confidence, resamples, seed)
    models = labelled([runs] if isinstance(runs, str | Path | Run) else runs)
    if len(models) < 2:
        raise UserError(
            f"a comparison needs two models, got {len(models)} ({', '.join(models) or 'none'}). "
            "Name another run directory, or DIR:model for one model of it."
        )
    base = baseline_of(models, baseline)
    asked, shared = _compared_tasks(models, base, tasks)
    meant = _allowed_differences(models, base, asked, allow)
    maker = RowMaker(confidence=confidence, resamples=resamples, seed=seed, metrics=metrics)
    drafts = _drafts(maker, models, base, shared)
    labels = [base, *_candidates(models, base)]
    remarks = [
        line for label in labels[1:] for line in notes(models[base], models[label], (base, label), shared)
    ]
    return Comparison(
        baseline=base,
        models=[
            ModelInfo(
                label=label,
                name=models[label].name,
                directory=str(models[label].directory),
                digest=digest(models[label]),
            )
            for label in labels
        ],
        confidence=confidence,
        resamples=resamples,
        seed=seed,
        power=POWER,
        rows=maker.finish(drafts),
        origins={name: origin_of(models, name) for name in dict.fromkeys(draft.row.task for draft in drafts)},
        allowed=list(dict.fromkeys(map(str, meant))),
        notes=list(dict.fromkeys([*remarks, *maker.notes])),
    )


def _check_ranges(confidence: float, resamples: int, seed: int) -> None:
    if not 0 < confidence < 1:
        raise UserError(f"confidence must lie between 0 and 1, got {confidence}")
    if not 100 <= resamples <= 10_000_000:
        raise UserError(f"resamples must be from 100 to 10,000,000, got {resamples}")
    if not 0 <= seed < 2**64:
        raise UserError(f"seed must not be negative or have more than 64 bits, got {seed}")


def _compared_tasks(
    models: Mapping[str, ModelRun], base: str, wanted: Sequence[str] | None
) -> tuple[list[str] | None, list[str]]:
    """The single tasks that are asked for (None: all), and those of them that the baseline has.

    Raises:
        UserError: A name that no model has, or nothing to compare on.
    """
    base_run = models[base]
    known = {name for model in models.values() for name in (*model.tasks, *model.groups)}
    unknown = set(wanted or ()) - known
    asked = None if wanted is None else [one for task in wanted for one in _single(task, base_run)]
    shared = [task for task in base_run.tasks if asked is None or task in asked]
    if unknown or not shared:
        listed = ", ".join([*base_run.groups, *base_run.tasks])
        raise UserError(
            f"no task {', '.join(sorted(unknown or asked or []))!r} in these runs. They have: {listed}"
        )
    return asked, shared


def _single(name: str, model: ModelRun) -> tuple[str, ...]:
    return model.groups[name].tasks if name in model.groups else (name,)


def _candidates(models: Mapping[str, ModelRun], base: str) -> list[str]:
    return [label for label in models if label != base]


def _allowed_differences(
    models: Mapping[str, ModelRun], base: str, tasks: Sequence[str] | None, allow: Sequence[str]
) -> list[Mismatch]:
    """How candidates were asked otherwise than the baseline, where that is meant.

    Raises:
        UserError: Something that can't be allowed.
        ProtocolMismatchError: Differences that aren't meant; all of them.
    """
    if strange := sorted(set(allow) - set(ALLOWABLE)):
        raise UserError(f"--allow {', '.join(strange)}: one may allow {', '.join(ALLOWABLE)}")
    differences = [
        line
        for label in _candidates(models, base)
        for line in mismatches(models[base], models[label], (base, label), tasks)
    ]
    meant = [line for line in differences if line.causes and line.causes <= set(allow)]
    if forbidding := [line for line in differences if line not in meant]:
        raise ProtocolMismatchError(list(dict.fromkeys(forbidding)))
    return meant


def _drafts(maker: RowMaker, models: Mapping[str, ModelRun], base: str, tasks: Sequence[str]) -> list[Draft]:
    """A row for each task or group, metric and candidate, in the order of the table.

    Raises:
        UserError: A metric that no task has, or no row at all.
    """
    base_run = models[base]
    drafts: list[Draft] = []
    for name, depth in outline(tasks, base_run.groups):
        for label in _candidates(models, base):
            other = models[label]
            if name in base_run.tasks:
                drafts += maker.drafts((base, base_run.tasks[name]), (label, other.tasks[name]), depth=depth)
            else:
                drafts += maker.group_drafts(name, (base, base_run), (label, other), depth=depth)
    if maker.metrics is not None and (missing := set(maker.metrics) - maker.seen):
        raise UserError(
            f"no metric {', '.join(sorted(missing))!r}. These tasks have: {', '.join(sorted(maker.seen))}"
        )
    if not drafts:
        raise UserError(
            "nothing to compare: " + ("; ".join(maker.notes) or "the tasks have no numeric metric")
        )
    return drafts


def labelled(runs: Sequence[str | Path | Run]) -> dict[str, ModelRun]:
    """All models of all runs, by a name that no other has.

    Args:
        runs: As `compare` takes them.
    """
    found: list[ModelRun] = []
    for run in runs:
        for model in (run if isinstance(run, Run) else load_run(run)).models.values():
            if not any(
                m.name == model.name and m.directory.resolve() == model.directory.resolve() for m in found
            ):
                found.append(model)
    names = [model.name for model in found]
    labels = [name if names.count(name) == 1 else f"{name} ({model.directory.name})"
              for name, model in zip(names, found, strict=True)]  # fmt: skip
    if len(set(labels)) < len(labels):
        labels = [name if names.count(name) == 1 else f"{name} ({model.directory})"
                  for name, model in zip(names, found, strict=True)]  # fmt: skip
    return dict(zip(labels, found, strict=True))


def baseline_of(models: dict[str, ModelRun], wanted: str | None = None) -> str:
    """Label of the baseline: the one that is wanted, else the one that run.yaml names, else the first.

    Raises:
        UserError: No model is called so, or several are.
    """
    if wanted is None:
        for model in models.values():
            section = (model.run_config or {}).get("compare")
            named = section.get("baseline") if isinstance(section, dict) else None
            if named in models:
                return str(named)
        return next(iter(models))
    if wanted in models:
        return wanted
    fitting = [label for label, model in models.items()
               if wanted in (model.name, f"{model.directory}:{model.name}")]  # fmt: skip
    if len(fitting) != 1:
        why = "several models are called" if fitting else "no model is called"
        raise UserError(f"baseline: {why} {wanted!r}. Use one of: {', '.join(models)}")
    return fitting[0]
