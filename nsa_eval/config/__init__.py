"""The config of a run: strict, read from YAML with line numbers (`nsa_settings`)."""

from nsa_eval.config._generation import generation_problems
from nsa_eval.config._load import ConfigLike, dump_yaml, load_config, to_plain
from nsa_eval.config._members import Member, MemberGroup, Members, expand
from nsa_eval.config._types import parse_length
from nsa_eval.config._variants import Variant, all_variants, variants_of
from nsa_eval.config.schema import (
    ColumnSpec,
    CompareSpec,
    EngineSpec,
    ExecutorSpec,
    MethodSpec,
    ModelSpec,
    ReportSpec,
    RunConfig,
    TableSpec,
    TaskSpec,
    VariantSpec,
    section_keys,
)

__all__ = [
    "ColumnSpec",
    "CompareSpec",
    "ConfigLike",
    "EngineSpec",
    "ExecutorSpec",
    "Member",
    "MemberGroup",
    "Members",
    "MethodSpec",
    "ModelSpec",
    "ReportSpec",
    "RunConfig",
    "TableSpec",
    "TaskSpec",
    "Variant",
    "VariantSpec",
    "all_variants",
    "dump_yaml",
    "expand",
    "generation_problems",
    "load_config",
    "parse_length",
    "section_keys",
    "to_plain",
    "variants_of",
]
