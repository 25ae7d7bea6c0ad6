"""The `triton` backend: NSA kernels for CUDA GPUs; with TRITON_INTERPRET=1 they run on a CPU, for tests.

Rooms: `prefill` (forward of many queries), `backward` (its gradients), `decode` (one token a row against a
cache), `phi` (block compression), `hopper` (what replaces parts of prefill on that card), `spans`, `blocks`
(other attentions, see `nsa_kernels.spans` and `nsa_kernels.blocks`). `function` puts the first two together
for autograd. `tiles` is what all kernels share, `configs` the launches that are shipped. A room imports
`tiles` and `configs`; prefill imports hopper too, blocks parts of prefill and spans. Forwards are launched
through `ahead.launch`, so that a rehearsal can note them.
"""

import os

import torch
from torch import Tensor

from nsa_kernels.geometry import BlockGeometry
from nsa_kernels.triton import decode as _decode
from nsa_kernels.triton import function as _function
from nsa_kernels.triton.function import attention
from nsa_kernels.types import Caches, NSAOutput

__all__ = ["attention", "decode", "unavailable"]


def unavailable() -> str | None:
    """Why these kernels cannot run on this machine, or None."""
    if torch.cuda.is_available() or os.environ.get("TRITON_INTERPRET") == "1":
        return None
    return "it needs a CUDA device"


# The function takes the place of the subpackage `decode` as an attribute of this package; the import system
# finds the submodule all the same.
def decode(
    q: Tensor,
    caches: Caches,
    gates: Tensor,
    *,
    geometry: BlockGeometry,
    lengths: Tensor,
    scale: float,
    return_blocks: bool,
) -> NSAOutput:
    """One token a row; arguments and result as in `nsa_kernels.nsa_decode`.

    The kernels of decode have no backward: what needs gradients goes through those of prefill.
    """
    needs_gradient = torch.is_grad_enabled() and any(x.requires_grad for x in (q, *caches, gates))
    function = _function.decode if needs_gradient else _decode.decode
    return function(
        q,
        caches,
        gates,
        geometry=geometry,
        lengths=lengths,
        scale=scale,
        return_blocks=return_blocks,
    )
