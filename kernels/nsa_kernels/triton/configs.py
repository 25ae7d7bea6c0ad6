"""Launch configurations, measured once and shipped: nothing is tuned at run time.

Each stage names its parameters itself. BM: rows of queries to a tile. BN: keys to a tile. TMA: whether tiles
come (in the backward of compressed attention and window: dQ goes) in bulk copies. CHUNK: queries to a chunk,
PIECE: to a program. OCCUPANCY: programs to a multiprocessor. HALVES: keys in halves. SKIP: blocks that no
query of a tile chose are passed over (masked_forward; masked_everything is the same kernel where all are
chosen). num_warps, num_stages, maxnreg: as Triton has them. compress_linear: BM blocks, BN outputs, BK
elements of a token at a time (of 16 bits each; half as many of 32); compress_mlp the same with BN hidden
units; compress_mean: PIECES blocks to a program, ROWS tokens read at once. block_prefill: for tiles of up to
64 queries, block_prefill_128 for larger ones; heads share a tile of up to BM rows. block_decode: keys to a
step, programs to a multiprocessor. page_scores: pages to a program. window_sums: BN keys to a program, BM
queries to a step. The kernel for Hopper: BN, and the slots of its rings.

Candidates are measured by `benchmarks/tune_kernels.py` and `tune_decode.py` on the machine that they run on;
what wins goes into these tables.
"""

import functools
from collections.abc import Mapping

import torch

from nsa_kernels.ahead import real_device

Config = Mapping[str, int]
Table = Mapping[str, Mapping[int, Config]]
"""Stage -> widest head dimension that the entry serves -> configuration."""


def shipped(stage: str, width: int, device: torch.device) -> Config:
    """The shipped configuration of a stage.

    Args:
        stage: Its name, that of the function that launches it ("decode_many": `decode` with much to read).
        width: The larger of the two head dimensions.
        device: Where it will run.

    Returns:
        Parameters of the launch, `num_warps` and `num_stages` among them.
    """
    table = TABLES[table_name(device)]
    entries = table.get(stage) or DEFAULT[stage]
    fitting = [widest for widest in entries if width <= widest]
    return entries[min(fitting) if fitting else max(entries)]


def table_name(device: torch.device) -> str:
    """The table for a device: "h200" (Hopper), "a100", "interpreter" (a CPU), else "default"."""
    return _table_name(real_device(device))


def masked_rates(device: torch.device) -> Config | None:
    """What `masked.conditions` counts with on a device; None where the masked kernels were never measured."""
    return MASKED.get(table_name(device))


@functools.cache
def _table_name(device: torch.device) -> str:
    if device.type != "cuda":
        return "interpreter"
    return {(9, 0): "h200", (8, 0): "a100"}.get(torch.cuda.get_device_capability(device), "default")


_SMALL = {"num_warps": 4, "num_stages": 2}

_DECODE = {
    "keys": 64,
    "window_keys": 64,
    "programs": 2,
    "early": 1,
    "ranked": 1024,
    "slots": 1,
    "attend_programs": 2,
    "columns": 8,
    "merged": 64,
    "overlap": 0,
    "stream": 0,
    "score_warps": 4,
    "score_stages": 2,
    "attend_warps": 8,
    "attend_stages": 2,
    "merge_warps": 4,
}
"""keys: compressed keys to a tile. window_keys: tokens to a tile of the window. programs: of the first launch
to a multiprocessor, at most about. early: whether, where a program has one tile, its keys are asked for
before the row's length has come. stream: whether, where it has more, they come as in decode/stream.py; then
programs come in whole rounds. ranked: selection blocks whose pooled scores a program holds at a time. slots:
selected blocks to a program, at least. attend_programs: of the second launch to a multiprocessor, at most
about. columns: of the values that one program merges, at least. merged: partials of the compressed branch
that it holds at a time. overlap: whether a launch may begin before the one before it has ended. The rest:
warps and pipeline stages of the three launches.
"""

DEFAULT: Table = {
    "compressed_forward": {128: {"BM": 64, "BN": 32, **_SMALL}},
    "forced_forward": {128: {"BM": 64, "BN": 32, **_SMALL}},
    "select": {128: {"BM": 64, "BN": 64, "OCCUPANCY": 2, **_SMALL}},
    "selected_forward": {128: {"BN": 64, **_SMALL}},
    "window_forward": {128: {"BM": 64, "BN": 32, **_SMALL}},
    "compressed_backward": {
        128: {"BM": 32, "BN": 64, "CHUNK": 2048, "num_warps": 8, "num_stages": 2},
        256: {"BM": 16, "BN": 32, "CHUNK": 2048, **_SMALL},
    },
    "window_backward": {
        128: {"BM": 32, "BN": 64, "num_warps": 8, "num_stages": 2},
        256: {"BM": 16, "BN": 32, **_SMALL},
    },
    "gate_backward": {128: {"BM": 32, "num_warps": 4, "num_stages": 1}},
    "selected_backward": {
        64: {"BM": 32, "BN": 64, "CHUNK": 2048, "PIECE": 128, "HALVES": 0, **_SMALL},
        256: {"BM": 32, "BN": 32, "CHUNK": 2048, "PIECE": 128, "HALVES": 0, "num_warps": 8, "num_stages": 2},
    },
    "masked_everything": {128: {"BM": 64, "BN": 64, **_SMALL}},
    "masked_forward": {128: {"BM": 64, "BN": 64, **_SMALL}},
    "masked_queries": {128: {"BM": 64, "BN": 64, **_SMALL}},
    "masked_keys": {128: {"BM": 64, "BN": 64, **_SMALL}},
    "masked_compressed": {128: {"BM": 64, "BN": 64, "CHUNK": 2048, **_SMALL}},
    "compress_mean": {128: {"PIECES": 8, "ROWS": 16, "num_warps": 1, "num_stages": 1}},
    "compress_linear": {128: {"BM": 64, "BN": 64, "BK": 32, **_SMALL}},
    "compress_mlp": {128: {"BM": 64, "BN": 64, "BK": 32, **_SMALL}},
    "decode": {128: _DECODE},
    "decode_many": {128: _DECODE},
    "block_prefill": {128: {"BM": 64, "BN": 64, **_SMALL}, 256: {"BM": 64, "BN": 32, **_SMALL}},
    "block_prefill_128": {
        128: {"BM": 128, "BN": 64, "num_warps": 8, "num_stages": 2},
        256: {"BM": 128, "BN": 32, "num_warps": 8, "num_stages": 2},
    },
    "block_decode": {
        128: {"keys": 64, "programs": 4, "num_warps": 4},
        256: {"keys": 32, "programs": 4, "num_warps": 4},
    },
    "page_scores": {128: {"pages": 64, "num_warps": 4}},
    "window_sums": {128: {"BM": 64, "BN": 64, **_SMALL}, 256: {"BM": 32, "BN": 64, **_SMALL}},
}

_FEW = {**_DECODE, "keys": 128, "columns": 16, "overlap": 1, "attend_warps": 4}
_WIDE = {**_FEW, "keys": 64, "programs": 4}  # larger tiles would not fit into shared memory
_HOPPER = {"QUERY_SLOTS": 2, "num_warps": 4, "maxnreg": 168}

H200: Table = {
    "compressed_forward": {
        128: {"BM": 64, "BN": 64, "TMA": 1, "num_warps": 4, "num_stages": 1, "maxnreg": 168}
    },
    "compressed_hopper": {128: {**_HOPPER, "BN": 128, "KEY_SLOTS": 2, "VALUE_SLOTS": 2}},
    "window_and_forced_hopper": {128: {**_HOPPER, "BN": 64, "KEY_SLOTS": 4, "VALUE_SLOTS": 4}},
    "select": {
        128: {"BM": 128, "BN": 64, "TMA": 1, "OCCUPANCY": 3, "num_warps": 4, "num_stages": 3, "maxnreg": 160}
    },
    "window_forward": {
        128: {"BM": 64, "BN": 32, "num_warps": 4, "num_stages": 2, "maxnreg": 128},
        256: {"BM": 64, "BN": 32, "num_warps": 4, "num_stages": 2},
    },
    "forced_forward": {
        128: {"BM": 64, "BN": 32, "num_warps": 4, "num_stages": 2, "maxnreg": 128},
        256: {"BM": 64, "BN": 32, "num_warps": 4, "num_stages": 2},
    },
    "selected_forward": {128: {"BN": 32, "TMA": 1, "num_warps": 1, "num_stages": 3}},
    "gate_backward": {128: {"BM": 64, "num_warps": 4, "num_stages": 1}},
    "compress_linear": {128: {"BM": 64, "BN": 128, "BK": 64, "num_warps": 4, "num_stages": 4}},
    "compress_mlp": {
        128: {"BM": 128, "BN": 64, "BK": 64, "num_warps": 8, "num_stages": 4},
        256: {"BM": 64, "BN": 64, "BK": 64, "num_warps": 8, "num_stages": 3},
    },
    "selected_backward": {
        64: {"BM": 64, "BN": 64, "CHUNK": 2048, "PIECE": 128, "HALVES": 0, "num_warps": 4, "num_stages": 3},
        128: {"BM": 64, "BN": 64, "CHUNK": 2048, "PIECE": 64, "HALVES": 1, "num_warps": 4, "num_stages": 2},
        256: {"BM": 64, "BN": 64, "CHUNK": 2048, "PIECE": 128, "HALVES": 0, "num_warps": 8, "num_stages": 1},
    },
    "compressed_backward": {
        64: {"BM": 64, "BN": 128, "CHUNK": 2048, "TMA": 1, "num_warps": 8, "num_stages": 3},
        128: {"BM": 64, "BN": 128, "CHUNK": 2048, "TMA": 1, "num_warps": 8, "num_stages": 3},
        256: {"BM": 32, "BN": 64, "CHUNK": 2048, "num_warps": 8, "num_stages": 2},
    },
    "window_backward": {
        64: {"BM": 64, "BN": 128, "TMA": 1, "num_warps": 8, "num_stages": 3},
        128: {"BM": 64, "BN": 128, "TMA": 1, "num_warps": 8, "num_stages": 3},
        256: {"BM": 32, "BN": 64, "num_warps": 8, "num_stages": 2},
    },
    "masked_everything": {128: {"BM": 64, "BN": 64, "num_warps": 4, "num_stages": 2}},
    "masked_forward": {128: {"BM": 64, "BN": 64, "SKIP": 1, "num_warps": 4, "num_stages": 2, "maxnreg": 168}},
    "masked_queries": {128: {"BM": 64, "BN": 64, "num_warps": 4, "num_stages": 2}},
    "masked_keys": {128: {"BM": 32, "BN": 64, "num_warps": 4, "num_stages": 2}},
    "masked_compressed": {128: {"BM": 64, "BN": 64, "CHUNK": 2048, "num_warps": 4, "num_stages": 2}},
    # Not measured: no spills, and two programs to a multiprocessor, by what the compiler reports.
    "window_sums": {128: {"BM": 64, "BN": 128, "num_warps": 8, "num_stages": 3}},
    # Wider than 128: not measured, and chosen for shared memory.
    "block_prefill": {
        128: {"BM": 64, "BN": 64, "TMA": 1, "num_warps": 4, "num_stages": 3},
        256: {"BM": 64, "BN": 32, "TMA": 1, "num_warps": 4, "num_stages": 2},
    },
    "block_prefill_128": {
        128: {"BM": 128, "BN": 128, "TMA": 1, "num_warps": 8, "num_stages": 3},
        256: {"BM": 128, "BN": 64, "TMA": 1, "num_warps": 8, "num_stages": 1},
    },
    "decode": {128: _FEW, 256: _WIDE},
    "decode_many": {128: {**_FEW, "stream": 1, "keys": 64, "score_stages": 3}, 256: _WIDE},
}

# Chosen for registers and shared memory by what the compiler reports for it (no spills at head dimension
# 128); not measured on one. What is not here is DEFAULT's.
A100: Table = {
    "compressed_forward": {128: {"BM": 64, "BN": 64, **_SMALL}},
    "select": {128: {"BM": 64, "BN": 64, "OCCUPANCY": 2, **_SMALL}},
    "window_forward": {128: {"BM": 64, "BN": 64, **_SMALL}},
    "forced_forward": {128: {"BM": 64, "BN": 64, **_SMALL}},
    "selected_forward": {128: {"BN": 32, "num_warps": 1, "num_stages": 3}},
}

_FINE = {**_DECODE, "keys": 16, "window_keys": 16, "ranked": 16, "columns": 16, "merged": 4}

# Small tiles, so that small tests cross their seams.
INTERPRETER: Table = {
    "compressed_forward": {128: {"BM": 16, "BN": 16, **_SMALL}},
    "forced_forward": {128: {"BM": 16, "BN": 16, **_SMALL}},
    "select": {128: {"BM": 16, "BN": 16, "OCCUPANCY": 2, **_SMALL}},
    "selected_forward": {128: {"BN": 16, **_SMALL}},
    "window_forward": {128: {"BM": 16, "BN": 16, **_SMALL}},
    "compressed_backward": {128: {"BM": 16, "BN": 16, "CHUNK": 32, "TMA": 0, **_SMALL}},
    "window_backward": {128: {"BM": 16, "BN": 16, "TMA": 0, **_SMALL}},
    "gate_backward": {128: {"BM": 16, "num_warps": 4, "num_stages": 1}},
    "selected_backward": {128: {"BM": 16, "BN": 16, "CHUNK": 16, "PIECE": 6, "HALVES": 0, **_SMALL}},
    "masked_everything": {128: {"BM": 32, "BN": 16, **_SMALL}},
    "masked_forward": {128: {"BM": 32, "BN": 16, "SKIP": 1, **_SMALL}},
    "masked_queries": {128: {"BM": 32, "BN": 16, **_SMALL}},
    "masked_keys": {128: {"BM": 32, "BN": 16, **_SMALL}},
    "masked_compressed": {128: {"BM": 32, "BN": 16, "CHUNK": 32, **_SMALL}},
    "compress_mean": {128: {"PIECES": 4, "ROWS": 4, "num_warps": 4, "num_stages": 1}},
    "compress_linear": {128: {"BM": 16, "BN": 16, "BK": 16, **_SMALL}},
    "compress_mlp": {128: {"BM": 16, "BN": 16, "BK": 16, **_SMALL}},
    "decode": {128: _FINE},
    "decode_many": {128: {**_FINE, "stream": 1}},
    "block_prefill": {128: {"BM": 64, "BN": 16, "TMA": 1, **_SMALL}},
    "block_prefill_128": {128: {"BM": 128, "BN": 16, **_SMALL}},
    "block_decode": {128: {"keys": 32, "programs": 3, "num_warps": 4}},
    "page_scores": {128: {"pages": 16, "num_warps": 4}},
    "window_sums": {128: {"BM": 32, "BN": 64, **_SMALL}},
}

TABLES: Mapping[str, Table] = {"h200": H200, "a100": A100, "default": DEFAULT, "interpreter": INTERPRETER}

H200_MASKED: Config = {
    "GATHER_TBS": 10,
    "FORWARD_TFLOPS": 390,
    "BACKWARD_TFLOPS": 250,
    "LISTS_TFLOPS": 250,
}
"""Rates of `masked.conditions` on an H200. GATHER_TBS: out of the L2 cache, 10^12 bytes a second. The others:
10^12 operations a second of masked tiles, forward and backward, and of the backward by lists; those of the
kernels for 64 heads of 128, window and forced blocks forward (NOTES.md: 390), selected backward (250)."""

MASKED: Mapping[str, Config] = {"h200": H200_MASKED}
"""Rates by device, where the masked kernels serve: where their tests for a GPU have passed, and where they
were measured to be faster than gathering (NOTES.md)."""
