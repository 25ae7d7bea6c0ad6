"""Data sets that RULER's documents are made from, under `ruler/` of the data root."""

from pathlib import Path

from nsa_tasks.data import DataSource

ESSAYS = DataSource(
    file="ruler/PaulGrahamEssays.json",
    at="",
    fields=("text",),
    hub="baber/paul_graham_essays",
    split="train",
    how="Make PaulGrahamEssays.json with the official repository's download_paulgraham_essay.py "
    "(NVIDIA/RULER, scripts/data/synthetic/json), or give a text of your own as essay: text:PATH, or take "
    "essay: generated.",
)
"""Paul Graham's essays in one text, as RULER's script collects them."""

ENGLISH = DataSource(
    file="ruler/english_words.json",
    at="",
    how="Take english_words.json from the official repository, scripts/data/synthetic/json (it is stored "
    "there with Git LFS), or use protocol: offline, whose longer list is the project's own.",
)
"""The official list for word lists longer than wonderwords' 8,166."""

SOURCES = {
    "squad": DataSource(
        file="ruler/dev-v2.0.json",
        at="data",
        hub="rajpurkar/squad_v2",
        split="validation",
        how="Download SQuAD 2.0's dev-v2.0.json (rajpurkar.github.io/SQuAD-explorer) and put it there.",
        licence="CC BY-SA 4.0",
    ),
    "hotpotqa": DataSource(
        file="ruler/hotpot_dev_distractor_v1.json",
        hub="hotpotqa/hotpot_qa",
        config="distractor",
        split="validation",
        how="Download HotpotQA's hotpot_dev_distractor_v1.json (hotpotqa.github.io) and put it there.",
        licence="CC BY-SA 4.0",
    ),
}
"""What the question-answering tasks ask about."""


def is_official_text(path: Path) -> bool:
    """Whether a path names a text in the shape of `ESSAYS`: a .json file, maybe compressed."""
    return path.name.removesuffix(".gz").removesuffix(".xz").endswith(".json")
