"""What a variant's responses depend on, as the store's key has it, and on what its costs are measured."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING

from nsa_eval.config import EngineSpec, RunConfig, Variant
from nsa_eval.config.marks import Effect, own_values

if TYPE_CHECKING:
    from nsa_eval.executors import VariantFacts
    from nsa_eval.store import Conditions


def store_context(variant: Variant, facts: VariantFacts, fingerprint: str, config: RunConfig) -> str:
    """Everything about a variant and its settings that a response depends on, as one string.

    It holds every key that is marked as able to change a response, and where a key leaves a choice ("auto"),
    what was chosen.
    """
    model = own_values(variant.checkpoint, Effect.RESPONSE)
    return json.dumps(
        {
            "model": model
            | {
                "fingerprint": fingerprint,
                "name": variant.checkpoint.path if variant.checkpoint.lm else None,
                "dtype": facts.model.dtype,
                "device": facts.model.device,
                "backend": dataclasses.asdict(facts.backend),
                "max_length": facts.model.max_length,
                "set": facts.changes,
                "method": facts.method,
            },
            "engine": own_values(config.engine, Effect.RESPONSE),
            "run": own_values(config, Effect.RESPONSE),
        },
        sort_keys=True,
        default=str,
    )


def conditions_of(facts: VariantFacts, engine: EngineSpec) -> Conditions:
    """On what a variant's costs are measured."""
    from nsa_eval.store import Conditions

    model = facts.model
    return Conditions(
        device_name=model.device_name or model.device,
        device=model.device,
        dtype=model.dtype.removeprefix("torch."),
        backend=facts.backend.name,
        batch_size=str(engine.batch_size),
        weights_bytes=model.weights_bytes,
        device_bytes=model.device_bytes,
        cuda_graphs=model.device == "cuda" and engine.cuda_graphs == "auto",
        share_prefixes=engine.share_prefixes,
    )
