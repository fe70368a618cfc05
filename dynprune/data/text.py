"""Text as keyword batches: sentences of a file, token ids padded to the longest, attention masks.

A data set is a directory with ``train.txt`` and ``val.txt``, a sentence a line, or one such file,
of which every tenth sentence is held out. There are no labels: a student learns from its teacher.
"""

import hashlib
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dynprune.data.folders import held_out
from dynprune.data.sampling import sample_index
from dynprune.errors import InputError, UsageError
from dynprune.example import Example

__all__ = ["TextBatches", "TextData", "load_tokenizer", "open_text", "text_file"]

logger = logging.getLogger(__name__)

LONGEST_FILE = 1 << 30  # bytes


@dataclass(frozen=True)
class TextData:
    """Tokenised sentences.

    Attributes:
        ids: of each sentence, the tokenizer's special tokens among them.
        padding: the id that fills a batch up.
        sentences: the same as text, where it is known.
    """

    ids: tuple[tuple[int, ...], ...]
    padding: int = 0
    sentences: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.ids)

    def call(self, positions: Sequence[int]) -> Example:
        """Return the model's call for some sentences: as long as the longest of them.

        Shape:
            ``input_ids`` and ``attention_mask``, int64 ``(B, T)``.
        """
        rows = [self.ids[position] for position in positions]
        longest = max(map(len, rows))
        ids = torch.full((len(rows), longest), self.padding)
        mask = torch.zeros_like(ids)
        for row, tokens in enumerate(rows):
            ids[row, : len(tokens)] = torch.tensor(tokens)
            mask[row, : len(tokens)] = 1
        return Example((), {"input_ids": ids, "attention_mask": mask})

    def calls(self, batch_size: int = 1) -> Iterator[Example]:
        """Yield calls for all sentences, in order."""
        for start in range(0, len(self), batch_size):
            yield self.call(range(start, min(start + batch_size, len(self))))

    def fingerprint(self) -> str:
        """Return a digest of every token, so that a run is not resumed with other sentences."""
        return hashlib.sha256(repr((self.ids, self.padding)).encode()).hexdigest()


POOL = 16  # batches whose sentences are dealt out by length


class TextBatches:
    """Batches that depend on (seed, step) alone; every sentence is seen once an epoch.

    Sentences of like length meet in a batch, so that little of it is padding: those of the next
    few batches are drawn together, sorted, dealt out, and the batches come in random order.

    Args:
        data: the sentences.
        batch_size: sentences of a step.
        seed: of the order.
    """

    def __init__(self, data: TextData, batch_size: int, seed: int) -> None:
        self.data, self.batch_size, self.seed = data, batch_size, seed
        self.pool = max(1, min(POOL, len(data) // batch_size))

    def __getitem__(self, step: int) -> tuple[dict[str, Tensor], None]:
        pool, count = step // self.pool, self.pool * self.batch_size
        drawn = [
            sample_index(len(self.data), pool * count + position, self.seed)
            for position in range(count)
        ]
        drawn.sort(key=lambda index: len(self.data.ids[index]))
        turn = sample_index(self.pool, step, self.seed)
        chosen = drawn[turn * self.batch_size : (turn + 1) * self.batch_size]
        return dict(self.data.call(chosen).kwargs), None


def load_tokenizer(directory: str | Path) -> Any:
    """Load the tokenizer that lies beside a transformers model; nothing is downloaded.

    Raises:
        InputError: if there is none.
    """
    import transformers

    try:
        found = transformers.AutoTokenizer.from_pretrained(str(directory), local_files_only=True)
    except (OSError, ValueError) as error:
        raise InputError(f"no tokenizer in {directory}: {str(error).splitlines()[0]}") from error
    if len(set(found.get_vocab()) - set(found.all_special_tokens)) < 2:
        # Where no file tells, the library makes one of the model's kind that knows no word.
        raise InputError(f"no tokenizer in {directory}: no file there holds its vocabulary")
    return found


def open_text(
    place: str | Path,
    tokenizer: Any,
    *,
    split: str | None = "val",
    tokens: tuple[int, int] = (8, 64),
) -> TextData:
    """Read and tokenise one part of a data set.

    Args:
        place: a directory with ``train.txt`` and ``val.txt``, or a text file.
        tokenizer: of the transformers library.
        split: ``train`` or ``val``; None for all of a file.
        tokens: least and most tokens of a sentence; others are left out.

    Raises:
        InputError: if the file is missing, is not UTF-8 text, or no sentence is left.
        UsageError: if ``split`` is neither.
    """
    path = text_file(place, split)
    sentences = _lines(path)
    if split is not None and path == Path(place):  # a file that has no parts
        sentences = [sentences[i] for i in held_out(len(sentences), split, str(path))]
    least, most = tokens
    ids = tokenizer(sentences)["input_ids"] if sentences else []
    fitting = [i for i, row in enumerate(ids) if least <= len(row) <= most]
    logger.debug(
        "%s: %d of %d sentences have %d to %d tokens", path, len(fitting), len(ids), *tokens
    )
    if not fitting:
        raise InputError(
            f"{path} has {len(sentences)} sentences, none of {least} to {most} tokens; write one "
            "sentence a line, or change text.tokens in the recipe"
        )
    return TextData(
        tuple(tuple(ids[i]) for i in fitting),
        tokenizer.pad_token_id or 0,
        tuple(sentences[i] for i in fitting),
    )


def text_file(place: str | Path, split: str | None) -> Path:
    """Return the file of one part of a text data set.

    Raises:
        InputError: if it is not there.
        UsageError: if ``split`` is neither ``train`` nor ``val``.
    """
    if split not in ("train", "val", None):
        raise UsageError(f"split {split!r} of a text data set; it is train or val")
    place = Path(place)
    path = place if place.is_file() or split is None else place / f"{split}.txt"
    try:
        size = path.stat().st_size
    except OSError as error:
        raise InputError(
            f"{path} cannot be read: {error.strerror}; a text data set is a directory with "
            "train.txt and val.txt, or one text file, a sentence a line"
        ) from error
    if size > LONGEST_FILE:
        raise InputError(f"{path} is larger than {LONGEST_FILE} bytes; split it up")
    if size == 0:
        raise InputError(f"{path} is empty; write one sentence a line")
    return path


def _lines(path: Path) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text: {error}") from error
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
    return [line.strip() for line in lines if line.strip()]
