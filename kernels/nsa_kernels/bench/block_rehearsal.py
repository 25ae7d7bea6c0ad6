"""The calls of the benchmark of lists on tensors without memory: what `compile_ahead` compiles in parallel.

A kernel takes two or three seconds of a core, and a cold machine would spend half of the benchmark's time
on them one after another. What is missed here is compiled when it is launched.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from nsa_kernels.bench.block_result import BlockSettings
from nsa_kernels.bench.mask_cases import Inputs, Mask, by_lists, masks, nsa, window
from nsa_kernels.bench.method_cases import prefill_cases, quest_set
from nsa_kernels.bench.settings import DTYPES
from nsa_kernels.bench.tune_cases import CANDIDATES, attend_with, tuned_lists

_META = torch.device("meta")


def rehearse(settings: BlockSettings, *, budgets: tuple[int, ...], page: int) -> None:
    """Makes every call that launches a kernel of this package, within `nsa_kernels.rehearsal`.

    Args:
        settings: What will be measured.
        budgets: KV tokens of Quest.
        page: Tokens of its pages.
    """
    draw = partial(torch.empty, device=_META, dtype=DTYPES[settings.dtype])
    if "prefill" in settings.tables:
        for length in settings.lengths:
            for case in prefill_cases(*_sequence(length, settings), settings):
                case.choose()
                case.attend()
    if "decode" in settings.tables:
        for length in settings.lengths:
            for batch in settings.batches:
                caches = quest_set(length, batch, settings, draw, page=page)
                for budget in budgets:
                    caches.with_budget(budget).both()
    if "masks" in settings.tables:
        for length in settings.mask_lengths:
            x = Inputs(*_sequence(length, settings), settings)
            for mask in masks(length, settings, torch.device("cpu")):
                by_lists(_without_memory(mask), x)()
                if mask.name == "causal":
                    nsa(x)()
                elif mask.name.startswith("sliding"):
                    window(x)()
    if "tune" in settings.tables:
        # Of one length: no kernel depends on it.
        q, k, v = _sequence(max(settings.lengths), settings)
        for tile, config in CANDIDATES:
            attend_with(q, k, v, tuned_lists(q, k, tile), config)


def _sequence(length: int, s: BlockSettings) -> tuple[Tensor, Tensor, Tensor]:
    def draw(heads: int) -> Tensor:
        return torch.empty(1, length, heads, s.head_dim, device=_META, dtype=DTYPES[s.dtype])

    return draw(s.heads), draw(s.kv_heads), draw(s.kv_heads)


def _without_memory(mask: Mask) -> Mask:
    tensors = {name: getattr(mask, name) for name in ("low", "high", "blocks", "edges")}
    return replace(mask, **{name: x.to(_META) for name, x in tensors.items() if x is not None})
