"""From paired samples to the rows of a comparison."""

import hashlib
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from nsa_eval._words import counted
from nsa_eval.comparison._pairs import Matched, Pairs, group_pairs, task_pairs
from nsa_eval.comparison._power import mde_means, mde_proportions
from nsa_eval.comparison._significance import holm, mcnemar, sign_flip
from nsa_eval.comparison._types import Family, Row, Verdict
from nsa_eval.comparison.intervals import bootstrap, tango
from nsa_eval.comparison.scores import Floats, is_binary, score_estimate, unit_of
from nsa_eval.results import ModelRun, TaskResult, at_position

# Below this many documents a bootstrap interval is known to come out too narrow.
_FEW_DOCUMENTS = 20


@dataclass(slots=True)
class Draft:
    """A row whose p-value still waits for the others: Holm, detectable effect and verdict come last."""

    row: Row
    differences: Floats
    """Of each document, with the variance of the row's difference, [n]."""
    subs: list["Draft"] = field(default_factory=list)


@dataclass(slots=True)
class RowMaker:
    """Makes the rows of one comparison; `finish` then corrects their p-values and gives the verdicts."""

    confidence: float
    resamples: int
    seed: int
    metrics: Sequence[str] | None
    notes: list[str] = field(default_factory=list)
    seen: set[str] = field(default_factory=set)
    """Every metric met, as "metric" and as "metric,filter"."""

    def drafts(
        self, baseline: tuple[str, TaskResult], candidate: tuple[str, TaskResult], *, depth: int = 0
    ) -> list[Draft]:
        """One draft per metric and filter of a task, each with those of its lengths or buckets by position.

        Args:
            baseline: Label and results.
            candidate: The same.
            depth: How many groups the task stands in.
        """
        task = baseline[1]
        found: list[Draft] = []
        metrics = metrics_of(task)
        parts = {(at_position(metric, end), name) for metric, name in metrics for end in task.positions}
        for metric, filter_name in self._wanted(key for key in metrics if key not in parts):
            matched = task_pairs(task, candidate[1], metric, filter_name)
            shape = self._shape(task.name, metric, filter_name, baseline[0], candidate[0], depth, bool(found))
            higher = task.higher_is_better.get(metric)
            draft = self._draft(matched, shape, higher)
            if draft is None or matched.pairs is None:
                continue
            self._remark(task, matched.pairs, draft.row)
            lengths = matched.pairs.lengths if task.has_lengths else []
            grid = sorted({length for length in lengths if length is not None})
            if len(grid) > 1:
                draft.subs = [self._measure(matched.pairs.at(length), draft.row, length) for length in grid]
            for end in task.positions:
                bucket = task_pairs(task, candidate[1], at_position(metric, end), filter_name).pairs
                if bucket is not None and bucket.n == matched.pairs.n:
                    draft.subs.append(self._measure(bucket, draft.row, end))
            found.append(draft)
        return found

    def group_drafts(
        self, group: str, baseline: tuple[str, ModelRun], candidate: tuple[str, ModelRun], *, depth: int = 0
    ) -> list[Draft]:
        """One draft per metric and filter of a group.

        Args:
            group: Its name.
            baseline: Label and results.
            candidate: The same.
            depth: How many groups it stands in.
        """
        own, theirs = baseline[1].groups[group], candidate[1].groups.get(group)
        found: list[Draft] = []
        for metric, filter_name in self._wanted(_split(key) for key in own.by_size):
            if theirs is None or theirs.by_size.get(f"{metric},{filter_name}") is None:
                self.notes.append(f"{group}, {metric}: not compared, {candidate[0]} has no such group score")
                continue
            matched = group_pairs(own, baseline[1], candidate[1], metric, filter_name)
            shape = self._shape(group, metric, filter_name, baseline[0], candidate[0], depth, bool(found))
            draft = self._draft(matched, shape, own.higher_is_better.get(metric))
            found += [] if draft is None else [draft]
        return found

    def finish(self, drafts: Sequence[Draft]) -> list[Row]:
        """Holm within each family of rows, and apart from that of its sub-rows; then effects and verdicts."""
        by_family: dict[str, list[Draft]] = {}
        for draft in drafts:
            by_family.setdefault(draft.row.family_name, []).append(draft)
        judged: dict[int, Row] = {}
        for together in by_family.values():
            subs = iter(self._judged([sub for draft in together for sub in draft.subs]))
            for draft, row in zip(together, self._judged(together), strict=True):
                update = {"lengths": [next(subs) for _ in draft.subs]}
                judged[id(draft)] = row.model_copy(update=update)
        return [judged[id(draft)] for draft in drafts]

    def _wanted(self, metrics: Iterable[tuple[str, str]]) -> Iterator[tuple[str, str]]:
        for metric, filter_name in metrics:
            keys = {metric, f"{metric},{filter_name}"}
            # "bypass" is lm-eval's stand-in for a score that is not computed (--predict_only).
            if metric == "bypass":
                continue
            self.seen |= keys
            if self.metrics is None or keys & set(self.metrics):
                yield metric, filter_name

    def _shape(
        self,
        name: str,
        metric: str,
        filter_name: str,
        baseline: str,
        candidate: str,
        depth: int,
        further: bool,
    ) -> Row:
        """What is known of a row before its scores are looked at: its family of hypotheses above all."""
        family: Family = "further metrics" if further else "headline" if depth == 0 else f"members {depth}"
        return Row.model_construct(
            task=name,
            metric=metric,
            filter=filter_name,
            baseline=baseline,
            candidate=candidate,
            depth=depth,
            family_name=family,
        )

    def _draft(self, matched: Matched, shape: Row, higher: bool | None) -> Draft | None:
        self.notes += matched.notes
        pairs = matched.pairs
        if pairs is None:
            return None
        both = np.concatenate([pairs.baseline.values, pairs.candidate.values])
        # What belongs to the whole task is settled here, so that its sub-rows use the same methods and units.
        update = {
            "binary": is_binary(both) and pairs.baseline.strata is None,
            "unit": unit_of(both, higher),
            "higher_is_better": higher,
        }
        return self._measure(pairs, shape.model_copy(update=update), None)

    def _remark(self, task: TaskResult, pairs: Pairs, shape: Row) -> None:
        """Notes what a reader of the row has to know."""
        where, n = f"{shape.task}, {shape.metric}", pairs.n
        if sum(pairs.samples) > n:
            self.notes.append(
                f"{where}: {sum(pairs.samples):,} samples of {counted(n, 'document')}; each counts once, "
                "by its mean"
            )
        if shape.higher_is_better is None:
            self.notes.append(f"{where}: the task doesn't say whether higher is better")
        if not shape.binary and n < _FEW_DOCUMENTS:
            self.notes.append(
                f"{where}: only {counted(n, 'document')}; bootstrap intervals tend to be too narrow"
            )
        figure = task.reported.get(f"{shape.metric},{shape.filter}")
        if figure is not None and math.isclose(figure, pairs.baseline.values.mean(), abs_tol=1e-9):
            return  # whatever lm-eval calls it, it is the mean
        for entry in task.config.get("metric_list") or []:
            aggregation = entry.get("aggregation", "mean") if isinstance(entry, dict) else "mean"
            if isinstance(entry, dict) and entry.get("metric") == shape.metric and aggregation != "mean":
                named = re.match(r"def (\w+)", str(aggregation))
                self.notes.append(
                    f"{where}: reported by lm-eval as {named[1] if named else aggregation}, "
                    "compared by the mean over documents"
                )

    def _measure(self, pairs: Pairs, shape: Row, length: int | None) -> Draft:
        n, higher = pairs.n, shape.higher_is_better is not False
        # Its own stream for every row, free of the models' order: a row doesn't change when others join it.
        key = repr((shape.task, shape.metric, shape.filter, length)).encode()
        seed = [self.seed, *hashlib.sha256(key).digest()[:8]]
        plain = pairs.differences
        differences = plain.spread
        above, below = int((plain.values > 0).sum()), int((plain.values < 0).sum())
        resampled = bootstrap(
            differences,
            self.confidence,
            resamples=self.resamples,
            rng=np.random.default_rng([*seed, 1]),
            bounds=(-1.0, 1.0) if shape.unit == "points" else None,
        )
        interval = resampled
        if shape.binary:
            interval, p = tango(above, below, n, self.confidence), mcnemar(above, below)
        else:
            p = sign_flip(plain.weighted, resamples=self.resamples, rng=np.random.default_rng([*seed, 2]))
        baseline, candidate = (
            score_estimate(
                scores,
                binary=shape.binary,
                unit=shape.unit,
                confidence=self.confidence,
                resamples=self.resamples,
                seed=[*seed, 3],
            )
            for scores in (pairs.baseline, pairs.candidate)
        )
        row = Row(
            task=shape.task,
            metric=shape.metric,
            filter=shape.filter,
            length=length,
            depth=shape.depth,
            family_name=shape.family_name,
            baseline=shape.baseline,
            candidate=shape.candidate,
            n=n,
            samples=sum(pairs.samples),
            binary=shape.binary,
            unit=shape.unit,
            higher_is_better=shape.higher_is_better,
            baseline_score=baseline,
            candidate_score=candidate,
            difference=float(differences.mean()),
            interval=interval,
            bootstrap=resampled,
            wins=above if higher else below,
            losses=below if higher else above,
            test="mcnemar" if shape.binary else "permutation",
            p=p,
            p_adjusted=p,
            family=1,
            minimum_detectable=None,
            verdict="not distinguishable",
        )
        return Draft(row, differences)

    def _judged(self, drafts: Sequence[Draft]) -> list[Row]:
        alpha, family = 1 - self.confidence, len(drafts)
        adjusted = holm([draft.row.p for draft in drafts])
        rows = []
        for draft, p in zip(drafts, adjusted, strict=True):
            row = draft.row
            # Holm's first step tests at alpha / family: what is detectable there is detectable in any case.
            if row.binary:
                detectable = mde_proportions(row.wins + row.losses, row.n, alpha / family)
            else:
                detectable = mde_means(draft.differences, alpha / family)
                if row.unit == "points" and detectable is not None and detectable > 1:
                    detectable = None
            update = {
                "p_adjusted": p,
                "family": family,
                "minimum_detectable": detectable,
                "verdict": _verdict(row, p <= alpha),
            }
            rows.append(row.model_copy(update=update))
        return rows


def metrics_of(task: TaskResult) -> list[tuple[str, str]]:
    """(metric, filter) of a task, the main one first: the order in which its configuration lists both."""
    named = [f.get("name") for f in task.config.get("filter_list") or [] if isinstance(f, dict)]
    filters = sorted(task.filters, key=lambda name: named.index(name) if name in named else len(named))
    return [(metric, name) for name in filters for metric in task.metrics(name)]


def _split(key: str) -> tuple[str, str]:
    metric, _, filter_name = key.partition(",")
    return metric, filter_name


def _verdict(row: Row, significant: bool) -> Verdict:
    if not significant or row.difference == 0:
        return "not distinguishable"
    if row.higher_is_better is None:
        return "higher" if row.difference > 0 else "lower"
    return "better" if (row.difference > 0) == row.higher_is_better else "worse"
