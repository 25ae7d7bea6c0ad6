"""Filler text for long-context tasks."""

from nsa_tasks.haystack.cuts import LONGEST_WORD, close_sentence, cut_points, sentence_ends, word_ends
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
    text_files,
)

__all__ = [
    "LONGEST_WORD",
    "NOISE",
    "DistractorHaystack",
    "GeneratedHaystack",
    "Haystack",
    "NoiseHaystack",
    "Stretch",
    "TextHaystack",
    "close_sentence",
    "cut_points",
    "generate_text",
    "load_text",
    "sentence_ends",
    "sentences",
    "text_files",
    "word_ends",
]
