"""Long-context tasks for lm-eval: YAML, prompt builders and scorers.

A task family is one folder (`needle/`): its YAMLs, a README, and a package whose `__init__` offers a
`TaskFamily` as `FAMILY`. The YAMLs work in three ways: through `task_spec()`, through lm-eval's own
`--include_path`, and from a notebook.

What families share: `sizing` (documents as long as a request should be), `sized_task` (the lm-eval class of
such tasks), `sampling` (seeds, several replies a document), `data` (local files and the hub), `upstream`
(prompts of others, checked by hash), `haystack` (filler).
"""

from nsa_tasks._api import (
    TaskInfo,
    families,
    family_of,
    is_own,
    list_groups,
    list_tasks,
    normal,
    parameters_of,
    portable,
    resolve,
    task_spec,
)
from nsa_tasks._clock import calls_clock, clock_at
from nsa_tasks._errors import TaskDataError, TaskError, TaskParameterError
from nsa_tasks._inventory import DataState, data_states
from nsa_tasks._parameters import Parameter, ParameterInfo, read_token_count
from nsa_tasks._suggest import closest
from nsa_tasks._yaml import TASKS_DIR
from nsa_tasks.family import FamilyCommand, Params, RequestSize, Size, TaskFamily, Truncation
from nsa_tasks.groups import GroupMember, TaskGroup, group_of

__all__ = [
    "TASKS_DIR",
    "DataState",
    "FamilyCommand",
    "GroupMember",
    "Parameter",
    "ParameterInfo",
    "Params",
    "RequestSize",
    "Size",
    "TaskDataError",
    "TaskError",
    "TaskFamily",
    "TaskGroup",
    "TaskInfo",
    "TaskParameterError",
    "Truncation",
    "calls_clock",
    "clock_at",
    "closest",
    "data_states",
    "families",
    "family_of",
    "group_of",
    "is_own",
    "list_groups",
    "list_tasks",
    "normal",
    "parameters_of",
    "portable",
    "read_token_count",
    "resolve",
    "task_spec",
]
