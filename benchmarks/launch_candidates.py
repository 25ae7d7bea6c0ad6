"""Candidates for the launch configurations, stage by stage, best guess first.

`tune_kernels.py` and `tune_decode.py` measure them; what wins goes into `nsa_kernels/triton/configs.py`,
which says what the parameters mean.
"""

from collections.abc import Mapping

from nsa_kernels.triton.configs import H200
from nsa_kernels.triton.hopper import conditions

Config = Mapping[str, int]

# Two programs to a multiprocessor: halves, for the shared memory that dQ's change of layout takes.
_TWO = {"BM": 64, "BN": 64, "CHUNK": 2048, "PIECE": 128, "HALVES": 1, "num_warps": 4, "num_stages": 2}
_ONE = {"BM": 128, "BN": 64, "CHUNK": 2048, "PIECE": 128, "HALVES": 0, "num_warps": 8, "num_stages": 2}

HOPPER: tuple[Config, ...] = tuple(
    {"BN": bn, "KEY_SLOTS": slots, "VALUE_SLOTS": slots, "QUERY_SLOTS": 2, "num_warps": 4, "maxnreg": 168}
    for bn, slots in ((128, 2), (64, 4), (64, 3), (64, 2))
)
"""Of the kernel for Hopper."""

PLAIN: dict[str, tuple[Config, ...]] = {
    "compressed_forward": tuple(
        {"BM": bm, "BN": bn, "TMA": tma, "num_warps": warps, "num_stages": stages} | limit
        for bm, bn, tma, warps, stages, limit in (
            (64, 64, 1, 4, 3, {}),
            (64, 128, 1, 4, 1, {}),
            (64, 64, 1, 4, 1, {}),
            (64, 64, 1, 4, 1, {"maxnreg": 168}),
            (64, 32, 1, 4, 3, {"maxnreg": 168}),
            (64, 64, 1, 4, 2, {"maxnreg": 168}),
            (128, 64, 1, 8, 2, {"maxnreg": 128}),
            (128, 128, 1, 8, 3, {}),
            (64, 64, 0, 4, 3, {}),
        )
    ),
    "window_forward": tuple(
        {"BM": bm, "BN": bn, "num_warps": warps, "num_stages": stages} | limit
        for bm, bn, warps, stages, limit in (
            (128, 64, 8, 2, {"maxnreg": 128}),
            (128, 64, 8, 3, {"maxnreg": 128}),
            (128, 32, 8, 3, {"maxnreg": 128}),
            (64, 32, 4, 2, {"maxnreg": 128}),
            (64, 32, 4, 3, {"maxnreg": 168}),
            (64, 64, 4, 3, {}),
            (64, 64, 4, 2, {"maxnreg": 168}),
        )
    ),
    "forced_forward": tuple(
        {"BM": bm, "BN": bn, "TMA": tma, "num_warps": warps, "num_stages": stages} | limit
        for bm, bn, tma, warps, stages, limit in (
            (64, 32, 0, 4, 2, {"maxnreg": 128}),
            (64, 32, 0, 4, 3, {}),
            (64, 64, 1, 4, 1, {"maxnreg": 168}),
            (64, 64, 0, 4, 2, {"maxnreg": 168}),
            (128, 32, 0, 8, 2, {"maxnreg": 128}),
            (128, 64, 0, 8, 2, {"maxnreg": 128}),
        )
    ),
    "select": tuple(
        {"BM": bm, "BN": bn, "TMA": tma, "OCCUPANCY": occupancy, "num_warps": warps, "num_stages": stages}
        | limit
        for bm, bn, tma, occupancy, warps, stages, limit in (
            (128, 64, 1, 2, 8, 3, {"maxnreg": 128}),
            (128, 64, 1, 2, 8, 2, {"maxnreg": 128}),
            (128, 64, 0, 2, 8, 3, {"maxnreg": 128}),
            (128, 128, 1, 2, 8, 2, {"maxnreg": 128}),
            (64, 64, 1, 3, 4, 3, {"maxnreg": 160}),
            (64, 64, 1, 4, 4, 3, {"maxnreg": 128}),
            (64, 128, 1, 3, 4, 2, {"maxnreg": 160}),
            (128, 64, 1, 3, 4, 3, {"maxnreg": 160}),
            (128, 64, 1, 3, 4, 3, {"maxnreg": 168}),
            (128, 64, 1, 2, 4, 3, {}),
            (256, 64, 1, 1, 8, 3, {}),
        )
    ),
    "selected_forward": tuple(
        {"BN": bn, "TMA": tma, "num_warps": warps, "num_stages": stages}
        for bn, tma, warps, stages in (
            (32, 1, 1, 3),
            (32, 1, 1, 2),
            (32, 0, 1, 3),
            (32, 0, 1, 2),
            (64, 1, 1, 2),
            (64, 1, 2, 2),
            (64, 0, 2, 2),
            (16, 0, 1, 3),
            (16, 1, 1, 4),
        )
    ),
    "masked_everything": tuple(
        {"BM": bm, "BN": bn, "num_warps": warps, "num_stages": stages} | limit
        for bm, bn, warps, stages, limit in (
            (64, 64, 4, 2, {}),
            (64, 64, 4, 1, {"maxnreg": 168}),
            (64, 64, 4, 3, {}),
            (64, 32, 4, 2, {"maxnreg": 168}),
            (64, 128, 4, 2, {}),
            (128, 64, 8, 2, {}),
            (128, 64, 8, 2, {"maxnreg": 168}),
            (128, 128, 8, 2, {}),
        )
    ),
    "masked_forward": tuple(
        {"BM": bm, "BN": bn, "SKIP": skip, "num_warps": warps, "num_stages": stages} | limit
        for bm, bn, skip, warps, stages, limit in (
            (64, 64, 1, 4, 2, {"maxnreg": 168}),
            (64, 64, 0, 4, 2, {"maxnreg": 168}),
            (64, 64, 1, 4, 2, {}),
            (64, 64, 1, 4, 1, {"maxnreg": 168}),
            (64, 64, 0, 4, 3, {}),
            (64, 32, 1, 4, 2, {}),
            (128, 64, 1, 8, 2, {"maxnreg": 168}),
            (128, 64, 0, 8, 2, {"maxnreg": 168}),
        )
    ),
    "masked_queries": tuple(
        {"BM": bm, "BN": bn, "num_warps": warps, "num_stages": stages} | limit
        for bm, bn, warps, stages, limit in (
            (64, 64, 4, 2, {}),
            (64, 64, 4, 1, {}),
            (64, 32, 4, 2, {"maxnreg": 168}),
            (64, 32, 4, 2, {}),
            (128, 64, 8, 2, {}),
            (128, 64, 8, 2, {"maxnreg": 168}),
        )
    ),
    "masked_keys": tuple(
        {"BM": bm, "BN": bn, "num_warps": warps, "num_stages": stages} | limit
        for bm, bn, warps, stages, limit in (
            (32, 64, 4, 2, {}),
            (64, 64, 4, 2, {}),
            (32, 64, 4, 3, {}),
            (64, 64, 4, 1, {}),
            (32, 64, 4, 2, {"maxnreg": 168}),
            (64, 64, 8, 2, {}),
            (64, 128, 8, 2, {}),
        )
    ),
    # BM rows (of one head of one query) to a program.
    "gate_backward": (
        {"BM": 32, "num_warps": 4, "num_stages": 1},
        {"BM": 64, "num_warps": 8, "num_stages": 1},
        {"BM": 64, "num_warps": 4, "num_stages": 1},
        {"BM": 16, "num_warps": 4, "num_stages": 1},
        {"BM": 16, "num_warps": 2, "num_stages": 1},
        {"BM": 128, "num_warps": 8, "num_stages": 1},
    ),
    "compressed_backward": (
        {"BM": 64, "BN": 128, "CHUNK": 2048, "TMA": 1, "num_warps": 8, "num_stages": 3},
        {"BM": 64, "BN": 128, "CHUNK": 1024, "TMA": 1, "num_warps": 8, "num_stages": 3},
        {"BM": 64, "BN": 128, "CHUNK": 4096, "TMA": 1, "num_warps": 8, "num_stages": 3},
        {"BM": 64, "BN": 128, "CHUNK": 2048, "TMA": 1, "num_warps": 8, "num_stages": 2},
        {"BM": 64, "BN": 64, "CHUNK": 2048, "TMA": 1, "num_warps": 8, "num_stages": 3},
        {"BM": 32, "BN": 128, "CHUNK": 2048, "TMA": 1, "num_warps": 8, "num_stages": 3},
        {"BM": 32, "BN": 64, "CHUNK": 2048, "TMA": 1, "num_warps": 4, "num_stages": 3},
        {"BM": 32, "BN": 128, "CHUNK": 2048, "TMA": 0, "num_warps": 8, "num_stages": 3},
        {"BM": 64, "BN": 128, "CHUNK": 2048, "TMA": 0, "num_warps": 8, "num_stages": 3},
    ),
    "window_backward": (
        {"BM": 64, "BN": 128, "TMA": 1, "num_warps": 8, "num_stages": 3},
        {"BM": 64, "BN": 128, "TMA": 1, "num_warps": 8, "num_stages": 2},
        {"BM": 64, "BN": 64, "TMA": 1, "num_warps": 8, "num_stages": 3},
        {"BM": 32, "BN": 128, "TMA": 1, "num_warps": 8, "num_stages": 3},
        {"BM": 32, "BN": 64, "TMA": 1, "num_warps": 4, "num_stages": 3},
        {"BM": 32, "BN": 128, "TMA": 0, "num_warps": 8, "num_stages": 3},
        {"BM": 64, "BN": 128, "TMA": 0, "num_warps": 8, "num_stages": 3},
    ),
    "selected_backward": (
        _TWO,
        _TWO | {"num_stages": 3},
        _ONE,
        _ONE | {"num_stages": 3},
        _TWO | {"num_warps": 8},
        _TWO | {"CHUNK": 1024},
        _TWO | {"CHUNK": 4096},
        _TWO | {"PIECE": 64},
        _TWO | {"PIECE": 256},
        _ONE | {"BM": 64, "num_stages": 3},
        _ONE | {"HALVES": 1},
    ),
    # BM blocks, BN outputs, BK elements of a token at a time (of 16 bits each; half as many of 32).
    "compress_linear": (
        {"BM": 64, "BN": 128, "BK": 64, "num_warps": 4, "num_stages": 4},
        {"BM": 128, "BN": 128, "BK": 64, "num_warps": 8, "num_stages": 4},
        {"BM": 64, "BN": 128, "BK": 128, "num_warps": 4, "num_stages": 3},
        {"BM": 128, "BN": 128, "BK": 64, "num_warps": 8, "num_stages": 3},
        {"BM": 128, "BN": 128, "BK": 128, "num_warps": 8, "num_stages": 3},
        {"BM": 64, "BN": 128, "BK": 64, "num_warps": 4, "num_stages": 3},
        {"BM": 64, "BN": 64, "BK": 128, "num_warps": 4, "num_stages": 4},
        {"BM": 128, "BN": 64, "BK": 64, "num_warps": 4, "num_stages": 4},
    ),
    # The same; BN hidden units.
    "compress_mlp": (
        {"BM": 128, "BN": 64, "BK": 64, "num_warps": 8, "num_stages": 4},
        {"BM": 64, "BN": 128, "BK": 64, "num_warps": 8, "num_stages": 4},
        {"BM": 64, "BN": 64, "BK": 64, "num_warps": 4, "num_stages": 4},
        {"BM": 64, "BN": 256, "BK": 64, "num_warps": 8, "num_stages": 3},
        {"BM": 128, "BN": 128, "BK": 64, "num_warps": 8, "num_stages": 4},
        {"BM": 64, "BN": 128, "BK": 128, "num_warps": 8, "num_stages": 3},
        {"BM": 128, "BN": 64, "BK": 128, "num_warps": 8, "num_stages": 3},
        {"BM": 64, "BN": 64, "BK": 128, "num_warps": 4, "num_stages": 4},
    ),
    # Forward and backward: PIECES blocks to a program, ROWS tokens read at once.
    "compress_mean": (
        {"PIECES": 8, "ROWS": 16, "num_warps": 1, "num_stages": 1},
        {"PIECES": 16, "ROWS": 16, "num_warps": 1, "num_stages": 1},
        {"PIECES": 8, "ROWS": 8, "num_warps": 1, "num_stages": 1},
        {"PIECES": 8, "ROWS": 16, "num_warps": 2, "num_stages": 1},
        {"PIECES": 16, "ROWS": 16, "num_warps": 2, "num_stages": 1},
        {"PIECES": 16, "ROWS": 16, "num_warps": 4, "num_stages": 1},
        {"PIECES": 32, "ROWS": 16, "num_warps": 4, "num_stages": 1},
    ),
}

DECODE: tuple[Config, ...] = tuple(
    {**H200["decode"][128], **changes}
    for changes in (
        {},
        {"overlap": 0},
        {"early": 0},
        # Fewer or more programs of one tile, and smaller or larger ones: one row against many.
        {"keys": 64, "programs": 4},
        {"keys": 64, "programs": 8, "score_warps": 2},
        {"keys": 32, "window_keys": 32, "programs": 8, "score_warps": 2},
        {"score_warps": 8},
        {"keys": 64, "stream": 1, "score_stages": 3},
        {"keys": 64, "stream": 1, "score_stages": 4},
        {"keys": 64, "stream": 1, "score_stages": 3, "programs": 1},
        {"keys": 32, "window_keys": 32, "stream": 1, "score_stages": 3, "programs": 4, "score_warps": 1},
        # The ranking: more warps, all blocks of 128k tokens at once.
        {"attend_warps": 8},
        {"ranked": 2048, "attend_warps": 8},
        # Many rows: fewer or more slots a program, more blocks on their way.
        {"attend_programs": 4},
        {"attend_programs": 1, "attend_stages": 3},
        {"attend_stages": 3},
        {"columns": 8},
        {"columns": 32, "merge_warps": 8},
    )
)


def candidates(stage: str) -> tuple[Config, ...]:
    """Those of a stage that this Triton can compile."""
    hopper = HOPPER if conditions.missing() is None else ()
    served = stage in ("compressed_forward", "window_and_forced_forward")
    return PLAIN.get(stage, ()) + (hopper if served else ())
