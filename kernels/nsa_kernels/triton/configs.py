"""Launch configurations, measured once and shipped: nothing is tuned at run time.

Each stage names its parameters itself (BM rows of queries and BN keys to a tile, mostly). A stage's
candidates are measured by `benchmarks/tune_kernels.py` on the machine that it runs on; what wins goes into
these tables.
"""

import functools
from collections.abc import Mapping

import torch

Config = Mapping[str, int]
Table = Mapping[str, Mapping[int, Config]]
"""Stage -> widest head dimension that the entry serves -> configuration."""


def config(stage: str, width: int, device: torch.device) -> Config:
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


@functools.cache
def table_name(device: torch.device) -> str:
    """The table for a device: "h200" (Hopper), "a100", "interpreter" (a CPU), else "default"."""
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
    "compress_mean": {128: {"PIECES": 8, "ROWS": 16, "num_warps": 1, "num_stages": 1}},
    "compress_linear": {128: {"BM": 64, "BN": 64, "BK": 32, **_SMALL}},
    "compress_mlp": {128: {"BM": 64, "BN": 64, "BK": 32, **_SMALL}},
    "decode": {128: _DECODE},
    "decode_many": {128: _DECODE},
    "decode_step": {128: {"units": 16, "elements": 256, "stages": 4, "programs": 2}},
}

_FEW = {**_DECODE, "keys": 128, "columns": 16, "overlap": 1, "attend_warps": 4}
_WIDE = {**_FEW, "keys": 64, "programs": 4}  # larger tiles would not fit into shared memory
_HOPPER = {"QUERY_SLOTS": 2, "num_warps": 4, "maxnreg": 168}

H200: Table = {
    "compressed_forward": {
        128: {"BM": 64, "BN": 64, "TMA": 1, "num_warps": 4, "num_stages": 1, "maxnreg": 168}
    },
    "compressed_hopper": {128: {**_HOPPER, "BN": 128, "KEY_SLOTS": 2, "VALUE_SLOTS": 2}},
    "near_hopper": {128: {**_HOPPER, "BN": 64, "KEY_SLOTS": 4, "VALUE_SLOTS": 4}},
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
    "compress_mean": {128: {"PIECES": 4, "ROWS": 4, "num_warps": 4, "num_stages": 1}},
    "compress_linear": {128: {"BM": 16, "BN": 16, "BK": 16, **_SMALL}},
    "compress_mlp": {128: {"BM": 16, "BN": 16, "BK": 16, **_SMALL}},
    "decode": {128: _FINE},
    "decode_many": {128: {**_FINE, "stream": 1}},
    "decode_step": {128: {"units": 16, "elements": 32, "stages": 2, "programs": 4}},
}

TABLES: Mapping[str, Table] = {"h200": H200, "a100": A100, "default": DEFAULT, "interpreter": INTERPRETER}
