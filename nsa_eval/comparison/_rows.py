"""From paired samples to the rows of a comparison."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from nsa_eval._words import counted
from nsa_eval.comparison._power import mde_means, mde_proportions
from nsa_eval.comparison._significance import holm, mcnemar, sign_flip
from nsa_eval.comparison._types import Row, Verdict
from nsa_eval.comparison.intervals import bootstrap, tango
from nsa_eval.comparison.scores import Floats, document_scores, is_binary, score_estimate, unit_of
from nsa_eval.results import Sample, TaskResult

# Below this many documents a bootstrap interval is known to come out too narrow.
_FEW_DOCUMENTS = 20


@dataclass(frozen=True, slots=True)
class _Pairs:
    """The documents of a row."""

    baseline: Floats
    """Mean score of the baseline on each document, [n]."""
    candidate: Floats
    """The same of the candidate, [n]."""
    lengths: list[int | None]
    samples: list[int]
    """Samples behind each document, [n]."""

    def at(self, length: int) -> "_Pairs":
        keep = [index for index, value in enumerate(self.lengths) if value == length]
        samples = [self.samples[index] for index in keep]
        return _Pairs(self.baseline[keep], self.candidate[keep], [length] * len(keep), samples)


@dataclass(slots=True)
class Draft:
    """A row whose p-value still waits for the others: Holm, detectable effect and verdict come last."""

    row: Row
    differences: Floats
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

    def drafts(self, baseline: tuple[str, TaskResult], candidate: tuple[str, TaskResult]) -> list[Draft]:
        """One draft per metric and filter of a task, each with those of its lengths."""
        found = []
        for filter_name, samples in baseline[1].filters.items():
            for metric in dict.fromkeys(name for sample in samples for name in sample.metrics):
                keys = {metric, f"{metric},{filter_name}"}
                # "bypass" is lm-eval's stand-in for a score that is not computed (--predict_only).
                if metric == "bypass":
                    continue
                self.seen |= keys
                if self.metrics is not None and not keys & set(self.metrics):
                    continue
                draft = self._draft(baseline, candidate, metric, filter_name)
                found += [] if draft is None else [draft]
        return found

    def finish(self, drafts: Sequence[Draft]) -> list[Row]:
        """Holm over all rows, and apart from that over all sub-rows; then detectable effects and verdicts."""
        subs = iter(self._judged([sub for draft in drafts for sub in draft.subs]))
        rows = self._judged(drafts)
        return [
            row.model_copy(update={"lengths": [next(subs) for _ in draft.subs]})
            for row, draft in zip(rows, drafts, strict=True)
        ]

    def _draft(
        self,
        baseline: tuple[str, TaskResult],
        candidate: tuple[str, TaskResult],
        metric: str,
        filter_name: str,
    ) -> Draft | None:
        task = baseline[1]
        pairs = self._pairs(task, candidate[1], metric, filter_name)
        if pairs is None:
            return None
        both = np.concatenate([pairs.baseline, pairs.candidate])
        higher = task.higher_is_better.get(metric)
        # What belongs to the whole task is settled here, so that its sub-rows use the same methods and units.
        shape = Row.model_construct(
            task=task.name,
            metric=metric,
            filter=filter_name,
            baseline=baseline[0],
            candidate=candidate[0],
            binary=is_binary(both),
            unit=unit_of(both, higher),
            higher_is_better=higher,
        )
        self._remark(task, pairs, shape)
        draft = self._measure(pairs, shape, None)
        grid = sorted({length for length in pairs.lengths if length is not None}) if task.has_lengths else []
        if len(grid) > 1:
            draft.subs = [self._measure(pairs.at(length), shape, length) for length in grid]
        return draft

    def _pairs(self, left: TaskResult, right: TaskResult, metric: str, filter_name: str) -> _Pairs | None:
        samples = left.filters[filter_name]
        a, b = document_scores(samples, metric), document_scores(right.filters[filter_name], metric)
        shared = [doc for doc in a if doc in b]
        where = f"{left.name}, {metric}"
        if len(shared) < max(len(a), len(b)):
            self.notes.append(
                f"{where}: only {counted(len(shared), 'document')} with this metric in both models"
            )
        scores = [np.array([side[doc] for doc in shared], dtype=np.float64) for side in (a, b)]
        broken = sum(int((~np.isfinite(side)).sum()) for side in scores)
        if broken or not shared:
            self.notes.append(f"{where}: not compared, {broken} scores are not finite numbers")
            return None
        first: dict[str, Sample] = {}
        counts: dict[str, int] = {}
        for sample in samples:
            first.setdefault(sample.doc_hash, sample)
            counts[sample.doc_hash] = counts.get(sample.doc_hash, 0) + sample.repeats
        lengths = [first[doc].length for doc in shared]
        return _Pairs(scores[0], scores[1], lengths, [counts[doc] for doc in shared])

    def _remark(self, task: TaskResult, pairs: _Pairs, shape: Row) -> None:
        """Notes what a reader of the row has to know."""
        where, n = f"{shape.task}, {shape.metric}", len(pairs.baseline)
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
        for entry in task.config.get("metric_list") or []:
            aggregation = entry.get("aggregation", "mean") if isinstance(entry, dict) else "mean"
            if isinstance(entry, dict) and entry.get("metric") == shape.metric and aggregation != "mean":
                self.notes.append(
                    f"{where}: reported by lm-eval as {aggregation}, compared by the mean over documents"
                )

    def _measure(self, pairs: _Pairs, shape: Row, length: int | None) -> Draft:
        n, higher = len(pairs.baseline), shape.higher_is_better is not False
        # Its own stream for every row, free of the models' order: a row doesn't change when others join it.
        key = repr((shape.task, shape.metric, shape.filter, length)).encode()
        seed = [self.seed, *hashlib.sha256(key).digest()[:8]]
        differences = pairs.candidate - pairs.baseline
        above, below = int((differences > 0).sum()), int((differences < 0).sum())
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
            p = sign_flip(differences, resamples=self.resamples, rng=np.random.default_rng([*seed, 2]))
        baseline, candidate = (
            score_estimate(
                values,
                binary=shape.binary,
                unit=shape.unit,
                confidence=self.confidence,
                resamples=self.resamples,
                seed=[*seed, 3],
            )
            for values in (pairs.baseline, pairs.candidate)
        )
        row = Row(
            task=shape.task,
            metric=shape.metric,
            filter=shape.filter,
            length=length,
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


def _verdict(row: Row, significant: bool) -> Verdict:
    if not significant or row.difference == 0:
        return "not distinguishable"
    if row.higher_is_better is None:
        return "higher" if row.difference > 0 else "lower"
    return "better" if (row.difference > 0) == row.higher_is_better else "worse"
