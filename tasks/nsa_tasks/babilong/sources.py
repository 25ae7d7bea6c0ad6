"""Where bAbI's stories, the official prompts and PG-19 come from."""

from nsa_tasks.babilong.stories import NAMES
from nsa_tasks.data import DataSource, local_paths

OFFICIAL = DataSource(
    file="babilong/prompts.py",
    how="Copy babilong/prompts.py of https://github.com/booydar/babilong there, or take prompt = lm-eval.",
    sha256="be08d7e466170177e38fddb997e3dd9ffb281d5a830edd240933e069a9c5c2ee",
    licence="Apache-2.0",
)
"""As of commit 7a6efee29f5c. Only assignments of texts and of one dictionary are read from it."""

PG19 = DataSource(
    file="corpus/pg19_test.jsonl",
    how="Put PG-19's test split there, a book a line with its `text` "
    "(https://github.com/google-deepmind/pg19), or take background = text:PATH or generated.",
    fields=("text",),
    hub="emozilla/pg19-test",
    licence="Apache-2.0; the books are in the public domain",
)
"""The official background."""

_HOW = (
    "Unpack data/tasks_1-20_v1-2.zip of https://github.com/booydar/babilong under babilong/ there: the "
    "official contexts are made of its en-10k files (the 1,000 questions of en do too)."
)
_FOLDERS = (
    "babilong/tasks_1-20_v1-2/en-10k",
    "babilong/tasks_1-20_v1-2/en",
    "needle/babi_en",
)
"""Where bAbI's files are looked for under the data root, the official ones first."""


def facts_source(qa: str, root: str) -> DataSource:
    """bAbI's file of a task: the first that is there, else the official one."""
    sources = [
        DataSource(
            file=f"{folder}/{qa}_{NAMES[qa]}_train.txt",
            how=_HOW,
            licence="CC BY 3.0 (bAbI tasks)",
        )
        for folder in _FOLDERS
    ]
    return next((source for source in sources if local_paths(source, root)), sources[0])
