"""Filler text for long-context tasks."""

from nsa_tasks.haystack.generator import generate_text, sentences
from nsa_tasks.haystack.sources import (
    NOISE,
    DistractorHaystack,
    GeneratedHaystack,
    Haystack,
    NoiseHaystack,
    Stretch,
    TextHaystack,
    load_text,
    sentence_ends,
    text_files,
    word_ends,
)

__all__ = [
    "NOISE",
    "DistractorHaystack",
    "GeneratedHaystack",
    "Haystack",
    "NoiseHaystack",
    "Stretch",
    "TextHaystack",
    "generate_text",
    "load_text",
    "sentence_ends",
    "sentences",
    "text_files",
    "word_ends",
]
