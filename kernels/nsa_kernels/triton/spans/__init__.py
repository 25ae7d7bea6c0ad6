"""Dense attention over keys in several places: one query a row (`decode`), parts merged (`merge_into`)."""

from nsa_kernels.triton.spans.decode import decode
from nsa_kernels.triton.spans.merge import merge_into

__all__ = ["decode", "merge_into"]
