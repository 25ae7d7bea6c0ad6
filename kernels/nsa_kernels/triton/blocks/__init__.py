"""Attention by lists of key blocks (`prefill`) and pages (`decode`), and what makes such lists on the device.

`pages` keeps, scores and picks Quest's pages, `slashes` turns diagonals and columns into lists, `window` adds
up what the keys of a window got. Steps of online softmax are those of `prefill`, splits are merged by the
kernel of `spans`.
"""

from nsa_kernels.triton.blocks.decode import decode
from nsa_kernels.triton.blocks.pages import MOST_PAGES, append, best_pages, page_scores
from nsa_kernels.triton.blocks.prefill import prefill
from nsa_kernels.triton.blocks.slashes import slash_lists
from nsa_kernels.triton.blocks.window import window_sums

__all__ = [
    "MOST_PAGES",
    "append",
    "best_pages",
    "decode",
    "page_scores",
    "prefill",
    "slash_lists",
    "window_sums",
]
