"""Checkpoints of other trainers, of NSA and of MiniCPM: read as this decoder, in memory or into a folder.

A format is a file here: the `model_type` that it goes by, what its config.json means as fields of
`NSADecoderConfig`, and what its tensors are called here. What a decoder of this project can't compute exactly
as that format defines it is refused with the reason; what a checkpoint's files don't say is a field of
`Choices`, whose default is noted.

Example:
    >>> convert("./fla-nsa-1b", "./nsa-1b", Choices(forced_blocks="own"))
"""

from nsa_models.imports._checkpoint import READING, Imported, foreign_type, imported, unread_notes
from nsa_models.imports._convert import Conversion, convert
from nsa_models.imports._format import FORCED_BLOCKS, READINGS, Choices, Format
from nsa_models.imports._registry import formats

__all__ = [
    "FORCED_BLOCKS",
    "READING",
    "READINGS",
    "Choices",
    "Conversion",
    "Format",
    "Imported",
    "convert",
    "foreign_type",
    "formats",
    "imported",
    "unread_notes",
]
