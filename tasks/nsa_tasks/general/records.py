"""Local records of the nine benchmarks, in the shape of the hub's rows that lm-eval's tasks read."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from nsa_tasks.data import Data, DataSource, load_data, local_files

Record = dict[str, Any]

BBH_TASKS = (
    *("boolean_expressions", "causal_judgement", "date_understanding", "disambiguation_qa", "dyck_languages"),
    *("formal_fallacies", "geometric_shapes", "hyperbaton", "logical_deduction_five_objects"),
    *("logical_deduction_seven_objects", "logical_deduction_three_objects", "movie_recommendation"),
    *("multistep_arithmetic_two", "navigate", "object_counting", "penguins_in_a_table"),
    *("reasoning_about_colored_objects", "ruin_names", "salient_translation_error_detection", "snarks"),
    *("sports_understanding", "temporal_sequences", "tracking_shuffled_objects_five_objects"),
    *("tracking_shuffled_objects_seven_objects", "tracking_shuffled_objects_three_objects"),
    *("web_of_lies", "word_sorting"),
)
"""Names of its files, which are lm-eval's `dataset_name` too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Benchmark:
    """Where one data set's splits lie, and what makes hub rows of their records."""

    splits: Mapping[str, tuple[DataSource, ...]]
    """By the split's name on the hub: files to look for, the first that is there counts."""
    belongs: Callable[[Record, str | None], bool] = lambda record, name: True
    """Whether a record belongs to lm-eval's `dataset_name`."""
    convert: Callable[[Record], Record] = field(default=lambda record: record)
    """What becomes of a record."""


_LICENCES = {
    "cais/mmlu": "MIT",
    "TIGER-Lab/MMLU-Pro": "MIT",
    "haonan-li/cmmlu": "CC BY-NC-SA 4.0",
    "SaylorTwift/bbh": "MIT",
    "openai/gsm8k": "MIT",
    "EleutherAI/hendrycks_math": "MIT",
    "EleutherAI/drop": "CC BY-SA 4.0",
    "openai/openai_humaneval": "MIT",
    "google-research-datasets/mbpp": "CC BY 4.0",
}


def _source(file: str, hub: str, how: str, *fields: str, **more: Any) -> DataSource:  # noqa: ANN401
    return DataSource(file=file, hub=hub, how=how, fields=fields, licence=_LICENCES[hub], **more)


def _by_subject(record: Record, name: str | None) -> bool:
    return bool(record["subject"] == name)


def _by_type(record: Record, name: str | None) -> bool:
    """MATH's own name of a subject is "Counting & Probability", the hub's configuration's counting_and_..."""
    return str(record["subject"]).lower().replace("&", "and").replace(" ", "_") == name


def _drop(record: Record) -> Record:
    """A row as the hub's: `context` holds passage and question, `ref_text` the accepted answers."""
    passage, _, question = str(record["context"]).rpartition("\nQuestion:")
    date = {"day": "", "month": "", "year": ""}
    accepted = [[answer] for answer in str(record["ref_text"]).split("|")]
    return {
        "query_id": str(record.get("query_id", "")),
        "passage": passage.strip().removeprefix("Passage:").strip(),
        "question": question.strip().removesuffix("Answer:").strip(),
        "answer": {"number": "", "date": date, "spans": accepted[0]},
        "validated_answers": {
            "number": [""] * len(accepted),
            "date": [date] * len(accepted),
            "spans": accepted,
        },
    }


_MMLU = ("question", "subject", "choices", "answer")
_CMMLU = ("subject", "Question", "A", "B", "C", "D", "Answer")
_PRO = ("question", "options", "answer", "category")
_QA = ("question", "answer")

BENCHMARKS: dict[str, Benchmark] = {
    "cais/mmlu": Benchmark(
        splits={
            split: (_source(f"general/mmlu/{split}.jsonl", "cais/mmlu", "Write MMLU's rows there.", *_MMLU),)
            for split in ("test", "dev")
        },
        belongs=_by_subject,
    ),
    "TIGER-Lab/MMLU-Pro": Benchmark(
        splits={
            "test": (
                _source(
                    "general/mmlu_pro/test.jsonl", "TIGER-Lab/MMLU-Pro", "Write its test rows there.", *_PRO
                ),
            ),
            "validation": (
                _source(
                    "general/mmlu_pro/validation.jsonl",
                    "TIGER-Lab/MMLU-Pro",
                    "Write its validation rows there, which have the worked solutions of the examples.",
                    *_PRO,
                    "cot_content",
                    split="validation",
                ),
            ),
        }
    ),
    "haonan-li/cmmlu": Benchmark(
        splits={
            split: (
                _source(
                    f"general/cmmlu/{split}.jsonl", "haonan-li/cmmlu", "Write CMMLU's rows there.", *_CMMLU
                ),
            )
            for split in ("test", "dev")
        },
        belongs=_by_subject,
    ),
    "SaylorTwift/bbh": Benchmark(splits={}),  # a file for each of its tasks: `_sources`
    "openai/gsm8k": Benchmark(
        splits={
            "test": (
                _source(
                    "reasoning/gsm8k_test.jsonl",
                    "openai/gsm8k",
                    "Write its test.jsonl there.",
                    *_QA,
                    config="main",
                ),
            ),
            "train": tuple(
                _source(
                    f"reasoning/{name}.jsonl",
                    "openai/gsm8k",
                    "Write its train.jsonl there.",
                    *_QA,
                    config="main",
                    split="train",
                )
                for name in ("gsm8k_train", "gsm8k_train_first200")
            ),
        }
    ),
    "EleutherAI/hendrycks_math": Benchmark(
        splits={
            "test": (
                _source(
                    "general/math_test.jsonl",
                    "EleutherAI/hendrycks_math",
                    "Write the 5,000 test problems of MATH there, with their subject.",
                    *("problem", "solution", "subject"),
                    aliases={"subject": ("type",)},
                ),
            )
        },
        belongs=_by_type,
    ),
    "EleutherAI/drop": Benchmark(
        splits={
            split: (
                _source(
                    f"general/drop_{name}.jsonl",
                    "EleutherAI/drop",
                    f"Write DROP's {name} questions there (context, ref_text).",
                    *("context", "ref_text"),
                    split=split,
                ),
            )
            for split, name in (("validation", "dev"), ("train", "train"))
        },
        convert=_drop,
    ),
}
"""By the hub's name of the data, which lm-eval's tasks have as `dataset_path`."""

CODE_SOURCES: dict[str, DataSource] = {
    "general_humaneval": _source(
        "general/humaneval.jsonl",
        "openai/openai_humaneval",
        "Write HumanEval's records there (github.com/openai/human-eval, data/).",
        *("task_id", "prompt", "entry_point", "canonical_solution", "test"),
    ),
    "general_mbpp": _source(
        "general/mbpp.jsonl",
        "google-research-datasets/mbpp",
        "Write MBPP's records there.",
        *("text", "code", "task_id", "test_list"),
        config="full",
    ),
}
"""Of the tasks that run code, by their names."""


def _sources(benchmark: str, split: str, name: str | None) -> tuple[DataSource, ...]:
    if benchmark == "SaylorTwift/bbh":
        return (_bbh(str(name)),) if split == "test" else ()
    return BENCHMARKS[benchmark].splits.get(split, ())


def _bbh(name: str) -> DataSource:
    return _source(
        f"general/bbh/{name}.json",
        "SaylorTwift/bbh",
        "Put BIG-Bench Hard's file there.",
        *("input", "target"),
        at="examples",
        config=name,
    )


ALL_SOURCES = (
    *(one for benchmark in BENCHMARKS.values() for files in benchmark.splits.values() for one in files),
    *map(_bbh, BBH_TASKS),
    *CODE_SOURCES.values(),
)


def source_of(benchmark: str, split: str, name: str | None) -> DataSource | None:
    """Where a split is looked for first; None for data that isn't read from files."""
    return next(iter(_sources(benchmark, split, name)), None) if benchmark in BENCHMARKS else None


def local_rows(benchmark: str, split: str, name: str | None, root: str) -> Data | None:
    """Read a split of a data set from local files.

    Args:
        benchmark: `dataset_path` of lm-eval's task.
        split: Its name on the hub.
        name: `dataset_name`: a subject, or None.
        root: The data root; empty leaves it to the environment.

    Returns:
        The rows of that name, as on the hub; None where there is no such file.

    Raises:
        TaskDataError: What is wrong with a file, by line.
    """
    for source in _sources(benchmark, split, name):
        files = local_files(source, root or None)
        if files is not None:
            known = BENCHMARKS[benchmark]
            whole = _load(_Keyed(source), root, _stamp(files))
            rows = [known.convert(record) for record in whole.records if known.belongs(record, name)]
            return Data(rows, whole.name, whole.files, whole.sha256)
    return None


class _Keyed:
    """A source that a cache can hold: its aliases are a mapping, its first file names it."""

    def __init__(self, source: DataSource) -> None:
        self.source = source

    def __hash__(self) -> int:
        return hash(self.source.files)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Keyed) and self.source == other.source


def _stamp(files: tuple[Path, ...]) -> tuple[tuple[str, int, int], ...]:
    """What tells that a file is the one that was read before."""
    return tuple((str(file), (found := os.stat(file)).st_mtime_ns, found.st_size) for file in files)


@lru_cache(maxsize=8)
def _load(source: _Keyed, root: str, stamp: object) -> Data:
    """Read a file once, though it holds the records of 57 subjects."""
    return load_data(source.source, root or None)
