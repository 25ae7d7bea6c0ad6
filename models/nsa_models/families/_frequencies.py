"""Positional frequencies that depend on the length of a forward, and how each row keeps those it has alone.

Two of transformers' RoPE scalings look at the longest position of a *forward*, not at each row's own:

- `longrope` (LongRoPE, arXiv 2402.13753) has one set of frequencies for forwards of up to
  `original_max_position_embeddings` tokens and another for longer ones.
- `dynamic` (dynamic NTK) computes new frequencies for every length beyond the trained one, and a module
  keeps them until a forward below that length puts them back.

So a batch, a chunk or a copied prefix can give a row other keys than it has alone. A row that is scored or
continued as `length` tokens is right when every forward it is in has the frequencies of one uncached forward
over all of its tokens, the definition kept here:

- Rows of one `regime` go together, others don't.
- The first forward of a row reads `first_forward(length)` tokens at least, so that it is in that regime
  already; the later ones then are.
- A reply that grows into another regime is read again from its first token. Beyond the trained length of
  `dynamic` that is every step. For `longrope` it is what Phi-3's own generate() does; for `dynamic`, where
  generate() leaves old keys as they were, so that a reply depends on how long the prompt before it was, the
  uncached forward is followed instead.
- What a module remembers is put back before each forward.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from nsa_models.families._declared import setting


class Frequencies:
    """At which lengths a model's frequencies change."""

    def __init__(self, borders: tuple[int, ...] = (), moving: int | None = None) -> None:
        """Check nothing: `of` reads a model.

        Args:
            borders: Forwards of more than so many tokens have other frequencies than those of up to it.
            moving: Beyond so many tokens each length has frequencies of its own.
        """
        self.borders = tuple(sorted(set(borders)))
        self.moving = moving
        self._modules: list[nn.Module] = []

    @classmethod
    def of(cls, model: PreTrainedModel) -> Frequencies:
        """Read a model's configs, the ones nested in it too."""
        borders: list[int] = []
        moving: list[int] = []
        for config, rope in _ropes(model):
            kind = str(rope.get("rope_type", rope.get("type", "default")))
            longest = setting(config, "max_position_embeddings")
            original = rope.get("original_max_position_embeddings") or setting(
                config, "original_max_position_embeddings"
            )
            limits = [int(limit) for limit in (original, longest) if limit]
            if kind in ("longrope", "su") and limits:
                borders.append(limits[0])
            elif "dynamic" in kind and limits:
                moving.append(min(limits))  # whichever of the two the module goes by: earlier is safe
        found = cls(tuple(borders), min(moving, default=None))
        if moving:
            found._modules = [module for module in model.modules() if _dynamic(module)]
        return found

    def regime(self, length: int) -> tuple[int, int]:
        """What forwards of `length` tokens share their frequencies by: equal regimes, equal frequencies."""
        own = length if self.moving is not None and length > self.moving else 0
        return sum(length > border for border in self.borders), own

    def first_forward(self, length: int) -> int:
        """Tokens that a row's first forward must read to have the frequencies of all `length` of them."""
        if self.moving is not None and length > self.moving:
            return length
        return max((border + 1 for border in self.borders if length > border), default=1)

    def reset(self) -> None:
        """Put back what earlier forwards have moved."""
        for module in self._modules:
            for prefix in _dynamic(module):
                original = getattr(module, f"{prefix}original_inv_freq", None)
                if original is None:
                    continue
                device = getattr(module, f"{prefix}inv_freq").device
                module.register_buffer(f"{prefix}inv_freq", original.to(device), persistent=False)
                setattr(module, f"{prefix}max_seq_len_cached", getattr(module, "original_max_seq_len", 0))


def _ropes(model: PreTrainedModel) -> Iterator[tuple[Any, Mapping[str, Any]]]:
    """Every (config, RoPE parameters) in a model's config; some keep one set for each type of layer."""
    configs = [model.config]
    configs += [part for part in vars(model.config).values() if hasattr(part, "to_dict")]
    for config in configs:
        for name in ("rope_parameters", "rope_scaling"):
            given = setting(config, name)
            if isinstance(given, Mapping):
                yield config, given
                for part in given.values():
                    if isinstance(part, Mapping):
                        yield config, part


def _dynamic(module: nn.Module) -> list[str]:
    """Prefixes of the buffers in which a rotary module keeps dynamic frequencies, some one a layer type."""
    kinds = getattr(module, "rope_type", None)
    if isinstance(kinds, str):
        return [""] if "dynamic" in kinds else []
    if isinstance(kinds, Mapping):
        return [f"{layer}_" for layer, kind in kinds.items() if "dynamic" in str(kind)]
    return []
