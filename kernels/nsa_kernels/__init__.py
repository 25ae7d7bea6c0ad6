"""Native Sparse Attention (arXiv 2502.11089): one definition, several backends.

`nsa_attention` is prefill (whole or in pieces), `nsa_decode` one token a row. Keys are compressed by
`compress_mean`, `compress_linear` or `compress_mlp`. `compile_ahead` compiles what calls will launch before
they are made, `compilations` counts what is compiled.
"""

from nsa_kernels.ahead import Compilations, compilations, compile_ahead, rehearsal
from nsa_kernels.compression import block_view, compress_linear, compress_mean, compress_mlp
from nsa_kernels.dispatch import (
    BACKENDS,
    available_backends,
    choose_backend,
    get_backend,
    nsa_attention,
    nsa_decode,
)
from nsa_kernels.geometry import BlockGeometry, num_blocks
from nsa_kernels.types import Backend, BackendUnavailableError, NSAOutput

NUMERICS = 4
"""Version of what the backends, and this project's full attention, compute: raised whenever the same inputs
may give other last bits than before. Stored responses and reports carry it."""

__all__ = [
    "BACKENDS",
    "NUMERICS",
    "Backend",
    "BackendUnavailableError",
    "BlockGeometry",
    "Compilations",
    "NSAOutput",
    "available_backends",
    "block_view",
    "choose_backend",
    "compilations",
    "compile_ahead",
    "compress_linear",
    "compress_mean",
    "compress_mlp",
    "get_backend",
    "nsa_attention",
    "nsa_decode",
    "num_blocks",
    "rehearsal",
]
