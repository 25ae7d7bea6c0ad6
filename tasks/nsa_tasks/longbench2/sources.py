"""Where LongBench v2's records and prompt templates come from."""

from nsa_tasks.data import DataSource, local_paths

FIELDS = (
    *("_id", "domain", "sub_domain", "difficulty", "length", "question"),
    *("choice_A", "choice_B", "choice_C", "choice_D", "answer", "context"),
)
"""Of every record."""

_HOW = (
    "Put data.json of the hub's THUDM/LongBench-v2 there, or its records parted by their `length` as "
    "short.jsonl, medium.jsonl and long.jsonl (also .gz or .xz)."
)
_LICENCE = "MIT (THUDM/LongBench)"
WHOLE = DataSource(
    file="longbench/v2/data.json",
    how=_HOW,
    fields=FIELDS,
    hub="THUDM/LongBench-v2",
    split="train",
    licence=_LICENCE,
)
"""The official file."""
PARTS = DataSource(
    file=tuple(f"longbench/v2/{part}.jsonl" for part in ("short", "medium", "long")),
    how=_HOW,
    fields=FIELDS,
    licence=_LICENCE,
)
"""The same records in three files."""

_TEMPLATES = {
    "0shot": "68a162252bc9ff71d5d7abca3d69bb31aac3c35f832d657a2866f2018b8a6950",
    "0shot_cot": "6cc33d92fd8f611662b756c1f10f302c541ca005b58c46d5f3188ac3a939bfe8",
    "0shot_cot_ans": "85ec59df4ac0e27aabbc619a7ca5cf3ae1787dd5a76cf51a18944eb52c91955f",
    "0shot_no_context": "125fb44183af01ffc623df19392b80a287db62af3e2a2805e5b2ff9c7b2bee30",
}
"""SHA-256 of the files of `prompts/` in THUDM/LongBench at commit 2e00731f8d0b."""
OF_TASK = {
    "longbench2": ("0shot",),
    "longbench2_cot": ("0shot_cot", "0shot_cot_ans"),
    "longbench2_no_context": ("0shot_no_context",),
}
"""Templates of each task, in the order of its requests."""


def template(name: str) -> DataSource:
    """An official prompt template."""
    return DataSource(
        file=f"longbench/v2/prompts/{name}.txt",
        how="Copy the folder prompts/ of https://github.com/THUDM/LongBench there: its wording is read at "
        "run time, and only from the files that were checked.",
        sha256=_TEMPLATES[name],
        licence="MIT",
    )


def records(root: str) -> DataSource:
    """The records: the official file if it is there, else the parts that are there, else the hub's."""
    if local_paths(WHOLE, root) or not local_paths(PARTS, root):
        return WHOLE
    return PARTS
