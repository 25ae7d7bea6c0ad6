"""The wording of LongBench's questions: from its own file, or else from the installed lm_eval.

Neither is kept in this project. Both are read as the exact files that were compared, and results say which.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast

from nsa_tasks.data import DataSource, load_data, local_files
from nsa_tasks.longbench.datasets import Dataset
from nsa_tasks.upstream import lm_eval_yaml

Wording = Literal["auto", "official", "lm-eval"]
"""Whose templates are filled in; "auto": LongBench's where its file is at hand, else lm-eval's."""

OFFICIAL = DataSource(
    file="longbench/v1/config/dataset2prompt.json",
    how="Copy LongBench/config/dataset2prompt.json of github.com/THUDM/LongBench there, or take prompts: "
    "lm-eval.",
    at="",
    sha256="56d22ad4f382169c2b8a11ff4c982a4a1bea096c8152b0f0b85b64686b157c30",
    licence="MIT",
)
"""LongBench's own templates, one for each dataset (THUDM/LongBench 2e00731)."""
# Of lm_eval/tasks/longbench/NAME.yaml, lm-eval 0.4.13.
_LM_EVAL_SHA256 = {
    "narrativeqa": "936875699b99950dee31be5fd67846ca83a4bc6c7c70ef2b6dc916b8459943e8",
    "qasper": "06fb70bf99d433abb1d96d2636a7985f51e364090ec88776bece1b05034f1b0d",
    "multifieldqa_en": "91fc3862ab2941ca5dc3d24c72c2477e77e8baf7e2668df0d821decf73b7d1d4",
    "multifieldqa_zh": "a735672403b2dfab8ed5543dbac4d11c038e6f98f181039cd3c7d1ac2011be62",
    "hotpotqa": "6049920c288f92fe88506fa3df571f8b8abd7989f54a5cc40584c28649db4a8b",
    "2wikimqa": "38d64e8368178c0df873d47946d47b6c56fccdc7d607417fd0da6d81b018b147",
    "musique": "067279bd5215d51cfd769dca467cb42c99c0069bcadd715a11dc4fb6733f944c",
    "dureader": "7274e03fc6cf058403861a0c4f6d9bcecda8174b067e686d59cf1f93543b621d",
    "gov_report": "416497c0ec43a9266d6880302f32d53714cf672e0a20b1bce45bc9318a083221",
    "qmsum": "f9a88740b59e5a928eeeb00fd0181b5a3b584730ee1a0a26b96fb03c654a2b38",
    "multi_news": "4cdd4960eb03335dfb0eda30921b46d39d2887d90fd56c02f44305f598bdf826",
    "vcsum": "5591ce11e48819fb1605072c5a99b22491fcc820dec36a7631fa8f051a5e1101",
    "trec": "1ccf2f097f21a5f1475bb859f83b7616af9c41030745115730451859c063e921",
    "triviaqa": "bd66721cb89c15a51c36220583893f42f3cf82ab849a25852a0d89d21d7c0432",
    "samsum": "1e757cdc69a1000c856b7350c941d4359d0b26c60cc6b10ad7febff1654eff50",
    "lsht": "9ec3994c1076f4f342ea587538d5813e3aafb6193a7e062d3421719a3207f384",
    "passage_count": "7864c1afe013d506d823290997455188806ad5f25f0722985e35057ef099715f",
    "passage_retrieval_en": "eb7d247ad563e58ff3be022dabcc6d4ca4a789a3497f6815e6417aadae1cb541",
    "passage_retrieval_zh": "615a9f9245fa7037fb041c4989998eb9d807fef9e2f097181267f13a5609dfe3",
    "lcc": "43642e75f85a5e8e5e4cbe1676d123b466c561e2448754b674210974a777050e",
    "repobench-p": "2e4b4b62a280d246d4514dc1a2f8a75f00fb01e3de03dbc259eec366bd1df5dc",
}


@dataclass(frozen=True, slots=True)
class Prompts:
    """How a dataset's records become prompts."""

    protocol: Literal["official", "lm-eval"]
    """Whose wording it is."""
    fill: Callable[[Mapping[str, Any]], str]
    """Makes a record's prompt."""
    sha256: str
    """Of the file with the template."""


def load_prompts(dataset: Dataset, wording: Wording, root: str | None) -> Prompts:
    """Read a dataset's template.

    Args:
        dataset: The dataset; LongBench-E asks as LongBench does.
        wording: Whose.
        root: The parameter `data_root`.

    Raises:
        TaskDataError: The file isn't there, or is another one than the one that was compared.
    """
    if wording == "lm-eval" or (wording == "auto" and local_files(OFFICIAL, root) is None):
        return _of_lm_eval(dataset)
    data = load_data(OFFICIAL, root)
    template: str = data.records[0][dataset.name]
    return Prompts("official", lambda record: template.format(**record), data.sha256)


def _of_lm_eval(dataset: Dataset) -> Prompts:
    from lm_eval.utils import apply_template

    sha256 = _LM_EVAL_SHA256[dataset.name]
    template = lm_eval_yaml(f"longbench/{dataset.name}.yaml", sha256=sha256)["doc_to_text"]

    def fill(record: Mapping[str, Any]) -> str:
        # Its own data has the official `input` as `question`.
        return cast("str", apply_template(template, {**record, "question": record["input"]}))

    return Prompts("lm-eval", fill, sha256)
