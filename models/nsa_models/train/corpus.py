"""Training text: a folder of files becomes a tokenizer, a token array and a word list, once."""

from __future__ import annotations

import gzip
import json
import lzma
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import numpy.typing as npt
from filelock import FileLock
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from nsa_models.train.recipe import TextRecipe

BOS, EOS, PAD = "<|bos|>", "<|eos|>", "<|pad|>"
Tokens = npt.NDArray[np.uint16]

_PACKED = (".gz", ".xz")
_WORD = re.compile(r"\b[a-z]{4,10}\b")
# So many that most are several tokens long: keys of an evaluation are not common words.
_WORDS_KEPT = 30_000
# Characters that are tokenised at once: enough to keep some cores busy, while a token in the making takes
# about a hundred bytes.
_AT_ONCE = 8_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Corpus:
    """Tokenised text, split by document."""

    tokenizer: PreTrainedTokenizerFast
    train: Tokens
    held_out: Tokens
    words: list[str]
    """Lower-case words of the training part, for keys and word values."""


def load_corpus(recipe: TextRecipe) -> Corpus:
    """Open the cache of `recipe`, making it from the folder when it isn't there; one process makes it.

    Raises:
        FileNotFoundError: Neither the cache nor any text is there.
        ValueError: A file of text can't be read, or the cache was made by another recipe.
    """
    made = recipe.cache / "corpus.json"
    if not made.is_file():
        recipe.cache.mkdir(parents=True, exist_ok=True)
        # Two that made it at once would write over the tokens that the faster one already reads.
        with FileLock(recipe.cache / "lock"):
            if not made.is_file():
                _make(recipe)
    about = json.loads(made.read_text(encoding="utf-8"))
    now = _made_by(recipe)
    changed = [key for key, value in about.get("made_by", now).items() if value != now.get(key)]
    if changed:
        raise ValueError(
            f"{recipe.cache} holds text of another recipe (differs in {', '.join(changed)}); "
            "choose another text.cache or remove that folder"
        )
    tokens = np.memmap(recipe.cache / "tokens.bin", dtype=np.uint16, mode="r")
    return Corpus(
        tokenizer=PreTrainedTokenizerFast.from_pretrained(recipe.cache / "tokenizer"),
        train=tokens[: about["train_tokens"]],
        held_out=tokens[about["train_tokens"] :],
        words=about["words"],
    )


def text_files(folder: Path, only: Sequence[str] = ()) -> list[Path]:
    """A folder's .txt and .jsonl files (plain, .gz or .xz), by order of names; `only` those of these names.

    Raises:
        FileNotFoundError: A file of `only` isn't there.
    """
    missing = [name for name in only if not (folder / name).is_file()]
    if missing:
        raise FileNotFoundError(f"no {', '.join(missing)} in {folder}: mend text.folder or text.files")
    paths = [folder / name for name in sorted(only)] if only else sorted(folder.rglob("*"))
    return [path for path in paths if _kind(path) in (".txt", ".jsonl")]


def _kind(path: Path) -> str:
    return (Path(path.stem) if path.suffix in _PACKED else path).suffix


def read_documents(paths: Iterable[Path]) -> Iterator[str]:
    """Yield the documents of `text_files`.

    Raises:
        ValueError: A file is damaged, not UTF-8, or has a line without a `text`.
    """
    for path in paths:
        try:
            with _open_text(path) as file:
                if _kind(path) == ".txt":
                    yield file.read()
                else:
                    yield from (_text_of(line) for line in file if line.strip())
        except (OSError, EOFError, lzma.LZMAError, ValueError) as error:
            raise ValueError(f"{path} can't be read as text: {error}") from error


def _open_text(path: Path) -> TextIO:
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding="utf-8")
    if path.suffix == ".xz":
        return lzma.open(path, "rt", encoding="utf-8")
    return path.open(encoding="utf-8")


def _text_of(line: str) -> str:
    record = json.loads(line)
    if not isinstance(record, dict) or not isinstance(record.get("text"), str):
        raise ValueError(f"a line isn't a JSON object with a `text`: {line[:60].strip()}")
    text: str = record["text"]
    return text


def train_tokenizer(documents: list[str], *, vocab_size: int) -> PreTrainedTokenizerFast:
    """Learn a byte-level BPE whose digits are single tokens, and which puts a BOS before a text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[BOS, EOS, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(documents, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[(BOS, tokenizer.token_to_id(BOS))]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=BOS, eos_token=EOS, pad_token=PAD)


def _make(recipe: TextRecipe) -> None:
    paths = text_files(recipe.folder, recipe.files) if recipe.folder.is_dir() else []
    documents = list(read_documents(paths))
    if not documents:
        raise FileNotFoundError(
            f"no .txt or .jsonl text in {recipe.folder}, and no tokenised text in {recipe.cache}: "
            "set text.folder to a folder that has some"
        )
    # A document's side of the split depends on its own text, so adding books never moves another.
    scale = 2**32
    sides = [int(sha256(text.encode()).hexdigest()[:8], 16) / scale < recipe.held_out for text in documents]
    training = [text for text, held_out in zip(documents, sides, strict=True) if not held_out]
    held_out = [text for text, held_out in zip(documents, sides, strict=True) if held_out]
    training, held_out = _both_sides(training, held_out)
    share = max(1, recipe.tokenizer_sample // max(1, len(training)))
    tokenizer = train_tokenizer([text[:share] for text in training], vocab_size=recipe.vocab_size)
    keep = recipe.max_tokens * 3 // max(1, len(training))  # characters; about three to a token
    arrays = [_encode(tokenizer, [text[:keep] for text in part]) for part in (training, held_out)]
    arrays = [arrays[0][: recipe.max_tokens], arrays[1][: max(1, recipe.max_tokens // 20)]]
    counts: Counter[str] = Counter()
    for text in training:
        counts.update(_WORD.findall(text[:200_000]))
    tokenizer.save_pretrained(recipe.cache / "tokenizer")
    np.concatenate(arrays).tofile(recipe.cache / "tokens.bin")
    about = {
        "made_by": _made_by(recipe),
        "sources": {
            path.relative_to(recipe.folder).as_posix(): sha256(path.read_bytes()).hexdigest()
            for path in paths
        },
        "train_tokens": len(arrays[0]),
        "held_out_tokens": len(arrays[1]),
        "documents": len(training),
        "words": sorted(word for word, _ in counts.most_common(_WORDS_KEPT)),
    }
    partial = recipe.cache / "corpus.json.part"
    partial.write_text(json.dumps(about), encoding="utf-8")
    partial.replace(recipe.cache / "corpus.json")  # last: a cache is there when this file is


def _made_by(recipe: TextRecipe) -> dict[str, Any]:
    """What the cache's content depends on, apart from the text itself."""
    return recipe.model_dump(mode="json", exclude={"folder", "cache"})


def _both_sides(training: list[str], held_out: list[str]) -> tuple[list[str], list[str]]:
    """Move a document over when chance left a side without one; a single document is cut near its end."""
    if len(training) + len(held_out) == 1:
        (text,) = training + held_out
        cut = len(text) * 9 // 10
        return [text[:cut]], [text[cut:]]
    if not held_out:
        return training[:-1], training[-1:]
    return training or held_out[:-1], held_out if training else held_out[-1:]


def _encode(tokenizer: PreTrainedTokenizerFast, documents: list[str]) -> Tokens:
    parts: list[Tokens] = []
    batch: list[str] = []
    for index, document in enumerate(documents, start=1):
        batch.append(document)
        if index == len(documents) or sum(map(len, batch)) >= _AT_ONCE:
            encodings = tokenizer.backend_tokenizer.encode_batch_fast(batch, add_special_tokens=False)
            parts += [np.asarray(encoding.ids, dtype=np.uint16) for encoding in encodings]
            batch = []
    return np.concatenate(parts)
