"""What a comparison holds: plain data that survives a round trip through JSON."""

from typing import Any, Literal, get_args

from pydantic import (
    BaseModel,
    ConfigDict,
    SerializationInfo,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
    model_validator,
)

from nsa_eval.comparison._points import from_points, rounded, to_points
from nsa_eval.comparison.intervals import Interval
from nsa_eval.results import Origin

Verdict = Literal["better", "worse", "higher", "lower", "not distinguishable"]
Unit = Literal["points", "raw"]
Family = str
"""Which rows Holm's correction covers together: "headline" (the main metric of every task and outermost
group), "members 1", "members 2", ... (the same of what stands in so many groups), "further metrics"."""
TOO_FEW = "not distinguishable (too few documents)"
VERDICTS = (*get_args(Verdict), TOO_FEW)
"""All verdicts in words, in the order in which they are counted."""


class Estimate(BaseModel):
    """The mean score of one model over the documents of a row."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    mean: float
    interval: Interval | None
    """None where nothing honest can be said: one value of a score without bounds, say."""


class Row(BaseModel):
    """One candidate against the baseline, on the documents of one task, under one metric.

    Scores are kept in the metric's own scale (0.93); `unit` says how tables and JSON show them (93.0 points).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    task: str
    metric: str
    filter: str
    length: int | None
    """Context length in tokens for a sub-row, or the end of its bucket by position; None for the whole
    task."""
    depth: int = 0
    """How many groups it stands in: rows of a group's members follow the group's, one deeper."""
    family_name: Family = "headline"
    baseline: str
    candidate: str
    n: int
    """Documents: what was paired, resampled and tested."""
    samples: int
    """Samples behind them; more than `n` where documents were asked several times."""
    binary: bool
    """Every score of the task is 0 or 1."""
    unit: Unit
    higher_is_better: bool | None
    baseline_score: Estimate
    candidate_score: Estimate
    difference: float
    """Candidate minus baseline, whichever of the two is the better direction."""
    interval: Interval | None
    """Of the difference: Tango's score interval for 0/1 scores, the paired bootstrap otherwise."""
    bootstrap: Interval | None
    """The paired bootstrap interval of the difference, for every kind of score."""
    wins: int
    """Documents on which the candidate scores better. For 0/1 scores McNemar's b."""
    losses: int
    """Documents on which the baseline scores better. For 0/1 scores McNemar's c."""
    test: Literal["mcnemar", "permutation"]
    p: float
    p_adjusted: float
    """After Holm's correction over `family` tests."""
    family: int
    """How many tests: those of `family_name`, sub-rows apart."""
    minimum_detectable: float | None
    """Smallest true difference that had an 80 % chance of being found at alpha / family; None: no
    difference."""
    verdict: Verdict
    lengths: list["Row"] = []
    """The same task at each context length, or in each bucket by position."""

    @property
    def too_few_documents(self) -> bool:
        """Whether the documents were too few to find any difference that the scores could have."""
        undecided = self.verdict == "not distinguishable" and self.minimum_detectable is None
        return undecided and (self.binary or self.wins + self.losses > 0)

    @property
    def ties(self) -> int:
        """Documents on which both score alike."""
        return self.n - self.wins - self.losses


class ModelInfo(BaseModel):
    """Which model a label stands for."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    label: str
    """Name in the tables: the model's own, with its run directory where two share one."""
    name: str
    directory: str
    digest: str = ""
    """Of the results that were compared: tells whether a stored comparison is still theirs."""


class Comparison(BaseModel):
    """The result of `compare`.

    As JSON it has the scores of rows whose unit is points in points, and says so (`in_points`).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[2] = 2
    baseline: str
    models: list[ModelInfo]
    """The baseline first, then the candidates."""
    confidence: float
    resamples: int
    seed: int
    power: float
    rows: list[Row]
    origins: dict[str, Origin] = {}
    """Of each task and group of `rows`: protocol, data with checksum, truncation."""
    allowed: list[str] = []
    """Differences that would forbid the comparison and were allowed: what the models were asked differs on
    purpose."""
    notes: list[str]
    """Differences that don't forbid the comparison, and everything else that a reader should know."""

    @model_validator(mode="before")
    @classmethod
    def _read(cls, data: Any) -> Any:  # noqa: ANN401 - whatever is given
        """Take JSON's points back into the scale of the scores."""
        if not isinstance(data, dict) or not data.get("in_points") or not isinstance(data.get("rows"), list):
            return data
        rows = [from_points(row) if isinstance(row, dict) else row for row in data["rows"]]
        return {key: value for key, value in data.items() if key != "in_points"} | {"rows": rows}

    @field_validator("rows")
    @classmethod
    def _round(cls, rows: list[Row]) -> list[Row]:
        """Keep what JSON can give back."""
        return [Row.model_validate(rounded(row.model_dump())) for row in rows]

    @model_serializer(mode="wrap")
    def _write(self, dump: SerializerFunctionWrapHandler, info: SerializationInfo) -> dict[str, Any]:
        """Write JSON in points."""
        data: dict[str, Any] = dump(self)
        if info.mode == "json":
            data |= {"in_points": True, "rows": [to_points(row) for row in data["rows"]]}
        return data

    @property
    def candidates(self) -> list[str]:
        """Labels of the models compared with the baseline."""
        return [model.label for model in self.models if model.label != self.baseline]

    @property
    def meant(self) -> str:
        """The allowed differences in one text; empty where there is none."""
        return f"this differs on purpose: {'; '.join(self.allowed)}" if self.allowed else ""

    @property
    def method(self) -> list[str]:
        """How the numbers were made, a sentence each."""
        level = f"{self.confidence * 100:g} %"
        meant = [f"Compared although {self.meant}."] if self.allowed else []
        return [
            *meant,
            "All differences are candidate minus baseline on the same documents; several samples of one "
            "document are averaged first.",
            f"Intervals ({level}): Wilson for the mean of 0/1 scores, Tango's score interval for their "
            "paired difference; for other scores the paired BCa bootstrap over documents "
            f"({self.resamples:,} resamples, seed {self.seed}), which is given beside Tango's for 0/1 "
            "scores as well.",
            "p: exact McNemar test for 0/1 scores, paired permutation test for others; adjusted by Holm "
            "within families: the main metric of every task and group for all candidates; the members of "
            "groups; further metrics; figures per length.",
            f"Verdict: the adjusted p against {1 - self.confidence:.3g}. Intervals are not adjusted, and the "
            "exact test is the stricter of the two: an interval may leave out 0 where the verdict finds "
            "nothing.",
            f"Minimum detectable effect (MDE): the true difference found with {self.power * 100:g} % power "
            "after the correction, at the discordance or spread observed.",
        ]
