"""Sparse attention methods on dense models: one a file, attached to a loaded model and taken off again.

They are references in plain torch: every key stays in the cache and unread ones are masked, so they show a
method's quality and count its reads exactly, and save neither time nor memory.
Those whose choice is whole blocks also run by kernels that read these alone (`fast=True`, on a GPU).

Example:
    >>> method = parse_method("quest:2560,reading=kernel")
    >>> with attach(model, method) as attached:
    ...     cache = model(prompt, use_cache=True).past_key_values
    ...     with attached.decoding():
    ...         model(token, past_key_values=cache)
    ...     attached.reads.decode
"""

from nsa_models.methods._attach import attach
from nsa_models.methods._base import DECLARATIONS, Budgeted, Method, MethodError, Phase, field_types
from nsa_models.methods._block import QueryBlock, keep_top
from nsa_models.methods._handle import Attached, attached_to
from nsa_models.methods._memory import Memories
from nsa_models.methods._prompt import PromptRow
from nsa_models.methods._reads import IndexReads, LayerReads, ReadCounts, Reads
from nsa_models.methods._registry import make_method, methods, parse_method, split_method
from nsa_models.methods._rowmethod import RowMethod
from nsa_models.methods._share import MethodShare, is_share, method_at
from nsa_models.methods._weights import WeightsError

__all__ = [
    "DECLARATIONS",
    "Attached",
    "Budgeted",
    "IndexReads",
    "LayerReads",
    "Memories",
    "Method",
    "MethodError",
    "MethodShare",
    "Phase",
    "PromptRow",
    "QueryBlock",
    "ReadCounts",
    "Reads",
    "RowMethod",
    "WeightsError",
    "attach",
    "attached_to",
    "field_types",
    "is_share",
    "keep_top",
    "make_method",
    "method_at",
    "methods",
    "parse_method",
    "split_method",
]
