"""What a sparse method declares, as the engine and a reader need it: what is restricted, and what to know."""

from __future__ import annotations

from nsa_models.families import Restrictions
from nsa_models.methods import Method


def restrictions_of(method: Method) -> Restrictions:
    """What a method takes away from its model's family."""
    return Restrictions(
        continuable=method.chunked_prefill,
        shared=method.shared_prefixes,
        graphs=False,
        either_phase=method.phase == "both" and method.chunked_prefill,
        slots=not method.rowwise,
    )


def remarks_on(method: Method) -> list[str]:
    """What a reader of scores under a method should know, a remark each."""
    said = []
    if method.phase == "prefill":
        said.append("decode steps are dense")
    if not method.chunked_prefill:
        said.append("each prompt is read in one forward, whatever prefill_chunk says")
    if method.phase == "decode":
        said.append("prompts are read dense: log-likelihoods are those of the dense model")
    if not method.lm_scores:
        said.append("its choice for a token sees later ones: log-likelihoods aren't a language model's")
    if method.simulated:
        said.append("quality only: the full cache is kept and masked, so no time or memory is saved")
    return said
