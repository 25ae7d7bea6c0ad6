"""The wording of LongBench's questions: from its own file, or else from the installed lm_eval.

Neither is kept in this project. Both are read as the exact files that were compared, and results say which.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

from nsa_tasks._errors import TaskDataError
from nsa_tasks.data import data_root
from nsa_tasks.longbench.datasets import Dataset
from nsa_tasks.upstream import lm_eval_yaml, read_json

Wording = Literal["auto", "official", "lm-eval"]
"""Whose templates are filled in; "auto": LongBench's where its file is at hand, else lm-eval's."""

OFFICIAL_FILE = "longbench/v1/config/dataset2prompt.json"
"""Under the data root, as in THUDM/LongBench below `LongBench/`."""
_OFFICIAL_SHA256 = "56d22ad4f382169c2b8a11ff4c982a4a1bea096c8152b0f0b85b64686b157c30"
_HOW = (
    "Copy LongBench/config/dataset2prompt.json of github.com/THUDM/LongBench there, or take prompts: lm-eval."
)
# Of lm_eval/tasks/longbench/NAME.yaml, lm-eval 0.4.13.
_LM_EVAL_SHA256 = {
    "narrativeqa": "936875699b99950dee31be5fd67846ca83a4bc6c7c70ef2b6dc916b8459943e8",
    "qasper": "06fb70bf99d433abb1d96d2636a7985f51e364090ec88776bece1b05034f1b0d",
    "multifieldqa_en": "91fc3862ab2941ca5dc3d24c72c2477e77e8baf7e2668df0d821decf73b7d1d4",
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


def official_file(root: str | None) -> Path | None:
    """Where LongBench's own templates lie, or should; None without a data root."""
    folder = data_root(root)
    return None if folder is None else folder / OFFICIAL_FILE


def load_prompts(dataset: Dataset, wording: Wording, root: str | None) -> Prompts:
    """Read a dataset's template.

    Args:
        dataset: The dataset; LongBench-E asks as LongBench does.
        wording: Whose.
        root: The parameter `data_root`.

    Raises:
        TaskDataError: The file isn't there, or is another one than the one that was compared.
    """
    path = official_file(root)
    if wording == "lm-eval" or (wording == "auto" and (path is None or not path.exists())):
        return _of_lm_eval(dataset)
    if path is None or not path.exists():
        where = path.absolute() if path else f"data root (data_root, or NSA_EVAL_DATA) with {OFFICIAL_FILE}"
        raise TaskDataError(f"no {where}, where LongBench's prompts are read from. {_HOW}")
    template: str = read_json(path, sha256=_OFFICIAL_SHA256)[dataset.name]
    return Prompts("official", lambda record: template.format(**record), _OFFICIAL_SHA256)


def _of_lm_eval(dataset: Dataset) -> Prompts:
    from lm_eval.utils import apply_template

    sha256 = _LM_EVAL_SHA256[dataset.name]
    template = lm_eval_yaml(f"longbench/{dataset.name}.yaml", sha256=sha256)["doc_to_text"]

    def fill(record: Mapping[str, Any]) -> str:
        # Its own data has the official `input` as `question`.
        return cast("str", apply_template(template, {**record, "question": record["input"]}))

    return Prompts("lm-eval", fill, sha256)
