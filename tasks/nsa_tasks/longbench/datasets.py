"""What LongBench says of each of its datasets: metric, reply budget, size, and how a model is asked."""

from dataclasses import dataclass
from typing import Literal

Metric = Literal["qa_f1", "qa_f1_zh", "rouge", "rouge_zh", "classification", "retrieval", "retrieval_zh",
                 "count", "code_sim"]  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Dataset:
    """One of LongBench's datasets (THUDM/LongBench 2e00731: LongBench/task.md, pred.py, eval.py)."""

    name: str
    """Its name in LongBench's files."""
    metric: Metric
    documents: int
    """Records of the full set."""
    new_tokens: int
    """The reply's budget."""
    chat: bool = True
    """Whether the model's chat template is applied: not where the prompt is a text to go on with."""
    first_line: bool = False
    """Whether a reply is cut to its first line before it is scored."""


_ALL = (
    Dataset(name="narrativeqa", metric="qa_f1", documents=200, new_tokens=128),
    Dataset(name="qasper", metric="qa_f1", documents=200, new_tokens=128),
    Dataset(name="multifieldqa_en", metric="qa_f1", documents=150, new_tokens=64),
    Dataset(name="multifieldqa_zh", metric="qa_f1_zh", documents=200, new_tokens=64),
    Dataset(name="hotpotqa", metric="qa_f1", documents=200, new_tokens=32),
    Dataset(name="2wikimqa", metric="qa_f1", documents=200, new_tokens=32),
    Dataset(name="musique", metric="qa_f1", documents=200, new_tokens=32),
    Dataset(name="dureader", metric="rouge_zh", documents=200, new_tokens=128),
    Dataset(name="gov_report", metric="rouge", documents=200, new_tokens=512),
    Dataset(name="qmsum", metric="rouge", documents=200, new_tokens=512),
    Dataset(name="multi_news", metric="rouge", documents=200, new_tokens=512),
    Dataset(name="vcsum", metric="rouge_zh", documents=200, new_tokens=512),
    Dataset(name="trec", metric="classification", documents=200, new_tokens=64, chat=False, first_line=True),
    Dataset(name="triviaqa", metric="qa_f1", documents=200, new_tokens=32, chat=False, first_line=True),
    Dataset(name="samsum", metric="rouge", documents=200, new_tokens=128, chat=False, first_line=True),
    Dataset(name="lsht", metric="classification", documents=200, new_tokens=64, chat=False, first_line=True),
    Dataset(name="passage_count", metric="count", documents=200, new_tokens=32),
    Dataset(name="passage_retrieval_en", metric="retrieval", documents=200, new_tokens=32),
    Dataset(name="passage_retrieval_zh", metric="retrieval_zh", documents=200, new_tokens=32),
    Dataset(name="lcc", metric="code_sim", documents=500, new_tokens=64, chat=False),
    Dataset(name="repobench-p", metric="code_sim", documents=500, new_tokens=64, chat=False),
)

DATASETS = {dataset.name: dataset for dataset in _ALL}
"""The 21 datasets by name, in LongBench's order."""

E_DATASETS = (
    *("qasper", "multifieldqa_en", "hotpotqa", "2wikimqa", "gov_report", "multi_news", "trec", "triviaqa"),
    *("samsum", "passage_count", "passage_retrieval_en", "lcc", "repobench-p"),
)
"""Those that LongBench-E has: other records of the same datasets, even in length."""

BUCKETS = ("0-4k", "4-8k", "8k+")
"""LongBench-E's columns."""

_PREFIX, _E_PREFIX = "lb_", "lb_e_"


def task_name(dataset: str, *, e: bool = False) -> str:
    """What the task of a dataset is called; `longbench_*` are lm-eval's own."""
    return f"{_E_PREFIX if e else _PREFIX}{dataset}"


def dataset_of(task: str) -> tuple[Dataset, bool]:
    """The dataset of a task, and whether it is LongBench-E's."""
    for prefix, e in ((_E_PREFIX, True), (_PREFIX, False)):
        name = task.removeprefix(prefix)
        if name != task and name in DATASETS and (not e or name in E_DATASETS):
            return DATASETS[name], e
    raise ValueError(f"{task} is no task of LongBench's")


def bucket(length: int) -> str:
    """LongBench-E's column of a record, by its `length` (words, or characters of Chinese)."""
    return BUCKETS[(length >= 4000) + (length >= 8000)]
