"""A dense decoder with random weights, of a shape that the command line says: what several benchmarks run."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from nsa_kernels.bench.result import describe
from nsa_kernels.bench.settings import DTYPES, parse_lengths

M = TypeVar("M", bound=nn.Module)


def add_timing(parser: argparse.ArgumentParser) -> None:
    """The options of how often, and where to."""
    parser.add_argument("--repeats", type=int, default=5, help="timed runs")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")


def write_figures(
    args: argparse.Namespace, words: Sequence[str] | None, rows: Sequence[Any], **more: object
) -> None:
    """Write `--json` anew, where it is asked for: environment, rows (dataclasses) and what else there is."""
    if args.json:
        found = {
            "environment": describe(
                torch.device(args.device), [sys.argv[0], *(sys.argv[1:] if words is None else words)]
            ),
            "layers": args.layers,
            "rows": [asdict(row) for row in rows],
            **more,
        }
        args.json.write_text(json.dumps(found, indent=2) + "\n")


def add_shape(parser: argparse.ArgumentParser) -> None:
    """The options of lengths, shape, dtype and device: four layers of an 8B's shape by default."""
    parser.add_argument("--lengths", type=parse_lengths, default="32k,64k", help="tokens; k = 1024")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--heads", type=int, default=32, help="query heads")
    parser.add_argument("--kv-heads", type=int, default=8, help="KV heads")
    parser.add_argument("--head-dim", type=int, default=128, help="width of a head")
    parser.add_argument("--mlp", type=int, default=14336, help="width of the MLP")
    parser.add_argument("--dtype", choices=tuple(DTYPES), default="bfloat16")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")


def shape_of(args: argparse.Namespace) -> dict[str, Any]:
    """Fields of a config of transformers; a small vocabulary, room for twice the longest prompt."""
    return {
        "vocab_size": 1024,
        "hidden_size": args.heads * args.head_dim,
        "intermediate_size": args.mlp,
        "num_hidden_layers": args.layers,
        "num_attention_heads": args.heads,
        "num_key_value_heads": args.kv_heads,
        "head_dim": args.head_dim,
        "max_position_embeddings": 2 * max(args.lengths),
    }


def made(make: Callable[[], M], args: argparse.Namespace) -> M:
    """The model that `make` makes, in `args.dtype` on `args.device`, the same weights each time."""
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(DTYPES[args.dtype])
    try:
        with torch.device(args.device):
            return make().eval()
    finally:
        torch.set_default_dtype(before)
