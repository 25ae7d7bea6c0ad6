"""One new token a row against the cache, in three launches that a CUDA graph can hold.

1. `score`: the compressed and the window branch in splits of the cache, and the scores pooled to selection
   blocks with each tile's own maximum as reference (`stream`: where there are many tiles);
2. `attend`: every program finds the n best blocks (`choose`), and attends to those of its slots;
3. `merge`: the partials of all branches (`partials`), gated and summed.

`plan` cuts a decode into programs, from shapes alone; `launch` is the function that others call.
"""

from nsa_kernels.triton.decode.launch import decode

__all__ = ["decode"]
