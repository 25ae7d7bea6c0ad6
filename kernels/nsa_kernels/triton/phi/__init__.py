"""Block compression phi: the tokens are read where they lie, and no block is unfolded.

`functions` has the three maps with their gradients, `launch` their launches, `kernels` the kernels.
"""

from nsa_kernels.triton.phi.functions import compress_linear, compress_mean, compress_mlp

__all__ = ["compress_linear", "compress_mean", "compress_mlp"]
