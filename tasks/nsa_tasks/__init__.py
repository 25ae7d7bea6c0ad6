"""Long-context tasks for lm-eval: YAML, prompt builders and scorers.

A task family is one folder (`needle/`): its YAMLs, a README, and a package whose `__init__` offers
`parameters`, `resolve` and `estimate`. The YAMLs work in three ways: through `task_spec()`, through lm-eval's
own `--include_path`, and from a notebook.
"""

from nsa_tasks._api import TaskInfo, estimate, list_tasks, task_spec
from nsa_tasks._parameters import ParameterInfo, TaskParameterError
from nsa_tasks._yaml import TASKS_DIR

__all__ = [
    "TASKS_DIR",
    "ParameterInfo",
    "TaskInfo",
    "TaskParameterError",
    "estimate",
    "list_tasks",
    "task_spec",
]
