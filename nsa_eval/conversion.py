"""Checkpoints of other trainers as folders of this project's."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nsa_models import Conversion


def convert(
    source: str | Path,
    destination: str | Path,
    *,
    forced_blocks: str | None = None,
    reading: str | None = None,
    revision: str | None = None,
) -> Conversion:
    """Write a checkpoint of another trainer as a folder that loads here and opens in transformers.

    Args:
        source: A folder or a hub id, of fla (`model_type: nsa`) or named as Llama's (`llama-nsa`).
        destination: A folder that isn't there yet, or is empty.
        forced_blocks: What every token selects: "paper" (block 0, its own and the one before) or "own".
            Default: what the format's own code does today, with a note where it once did otherwise.
        reading: Of llama-nsa, what reads the weights: "nsa", "selected" (that branch alone) or "full".
            Default: what its config.json tells.
        revision: Branch, tag or commit of a hub repository.

    Returns:
        The folder, its config, and notes on what the source's files don't say.

    Raises:
        ModelLoadError: The checkpoint is damaged or can't be represented exactly; the message says why.

    Example:
        >>> convert("./fla-nsa-1b", "./nsa-1b", forced_blocks="own").notes
        ()
    """
    import nsa_models

    choices = nsa_models.Choices(forced_blocks=forced_blocks, reading=reading)
    return nsa_models.convert(str(source), destination, choices, revision=revision)
