"""Text embeddings as a task: sentences without labels, and how close their vectors stay."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dynprune.data.text import TextBatches, TextData, open_text, text_file
from dynprune.errors import InputError
from dynprune.example import Example
from dynprune.files import write_file
from dynprune.host.modes import at_inference
from dynprune.tasks.embedding import embed, text_embedding
from dynprune.tasks.task import (
    Exhibit,
    Kind,
    Prediction,
    Progress,
    Reading,
    Samples,
    Scores,
    spread_over,
)
from dynprune.tasks.vectors import Seen, compare_vectors
from dynprune.tasks.written import free_names, write_tensors

__all__ = ["KIND", "Text"]

_TOGETHER = 32  # sentences of like length that are run in one call
_NEIGHBOURS = 3
_LEAST = 1 << 30


@dataclass(frozen=True)
class Text:
    """Sentences without labels.

    Attributes:
        data: the sentences as tokens.
        reading: how they become batches.
        origin: what the user named.
    """

    data: TextData
    reading: Reading
    origin: str

    name = "text"
    unit = "texts"
    metric = "cosine"
    compares = True
    ignore_index = -100

    def __len__(self) -> int:
        return len(self.data)

    @property
    def names(self) -> Sequence[str]:
        """The number of every sentence."""
        return [f"sentence {index}" for index in range(len(self))]

    def settled(self, model: nn.Module) -> "Text":
        """Return the data as it is, once a sentence has run through the model."""
        device = str(next(model.parameters()).device)
        embed(model, [self.call(0, device)])
        return self

    def call(self, index: int, device: str = "cpu") -> Example:
        """Return the call of one sentence."""
        return self.data.call([index]).to(device)

    def samples(self) -> Samples:
        """Return sentences of like length in every batch."""
        batches = TextBatches(self.data, self.reading.batch_size, self.reading.seed)
        return batches.__getitem__

    def evaluate(
        self,
        model: nn.Module,
        dense: nn.Module | None = None,
        *,
        device: str = "cpu",
        progress: Progress | None = None,
    ) -> Scores:
        """Compare the embeddings of every sentence, and each one's nearest other sentence."""
        assert dense is not None
        order = sorted(range(len(self)), key=lambda index: len(self.data.ids[index]))
        parts = [order[i : i + _TOGETHER] for i in range(0, len(order), _TOGETHER)]
        return compare_vectors(
            model,
            dense,
            lambda index: self.data.call(parts[index]).to(device),
            len(parts),
            _see,
            progress=progress,
        )

    def exhibits(
        self, student: nn.Module, dense: nn.Module | None, *, count: int, device: str = "cpu"
    ) -> Sequence[Exhibit]:
        """Show sentences with the nearest other ones, as each model sees them."""
        calls = [self.call(index, device) for index in range(len(self))]
        models = {"teacher": dense, "student": student}
        found = {who: embed(model, calls).cpu() for who, model in models.items() if model}
        shown = []
        for index in spread_over(len(self), count):
            rows = []
            for who, vectors in found.items():
                near = _nearest(vectors, index)
                rows += [(who, f"{share:.2f}  {self.data.sentences[i]}") for i, share in near]
            shown.append(Exhibit(self.data.sentences[index], rows=tuple(rows)))
        return shown

    def shares(self) -> Sequence[float] | None:
        """Return None: there are no classes."""
        return None

    def fingerprint(self) -> Any:
        """Return a digest of every token."""
        return {"texts": len(self), "digest": self.data.fingerprint()}


def _see(call: Example, student: Any, dense: Any) -> Seen:
    mask = call.kwargs["attention_mask"]
    ours, theirs = (text_embedding(output, mask).float() for output in (student, dense))
    return Seen((ours * theirs).sum(-1), ours, theirs)


def _nearest(vectors: Tensor, index: int) -> list[tuple[int, float]]:
    """Return the nearest other texts with their cosines, the nearest first."""
    cosines = vectors @ vectors[index]
    cosines[index] = -2.0
    best = cosines.topk(min(_NEIGHBOURS, len(vectors) - 1))
    return list(zip(best.indices.tolist(), best.values.tolist(), strict=True))


def _predict(
    model: nn.Module, inputs: Sequence[str], directory: Path, reading: Reading, device: str
) -> Iterator[Prediction]:
    """Embed the lines of text files: the vectors as safetensors, and each line's nearest others."""
    for path, stem in zip(inputs, free_names(inputs), strict=True):
        data = open_text(path, _tokenizer(reading), split=None, tokens=(1, _LEAST))
        calls = [data.call([index]).to(device) for index in range(len(data))]
        with at_inference(model), torch.no_grad():
            vectors = embed(model, calls).cpu()
        files = {
            "embeddings": directory / f"{stem}.safetensors",
            "neighbours": directory / f"{stem}.json",
        }
        write_tensors(files["embeddings"], {"embeddings": vectors})
        record = [
            {
                "text": text,
                "nearest": [
                    {"text": data.sentences[i], "cosine": share}
                    for i, share in _nearest(vectors, index)
                ],
            }
            for index, text in enumerate(data.sentences)
        ]
        write_file(files["neighbours"], json.dumps(record, indent=2) + "\n")
        shape = list(vectors.shape)
        yield Prediction(path, files, {"shape": shape}, f"{shape[0]} texts, vectors of {shape[1]}")


def _tokenizer(reading: Reading) -> Any:
    if reading.tokenizer is None:
        raise InputError(
            "text needs the model's tokenizer, and none lies beside it; copy tokenizer.json and "
            "tokenizer_config.json of the dense model into its directory"
        )
    return reading.tokenizer()


def _open(data: str, split: str, reading: Reading) -> Text:
    found = open_text(data, _tokenizer(reading), split=split, tokens=reading.tokens)
    return Text(found, reading, data)


def _recognises(data: str) -> bool:
    path = Path(data)
    if path.suffix == ".txt":
        return path.is_file()
    return any((path / f"{split}.txt").is_file() for split in ("train", "val"))


def _check(data: str, split: str) -> None:
    text_file(data, split)


KIND = Kind(
    "text",
    "train.txt with val.txt, or one text file, a sentence a line",
    _recognises,
    _check,
    _open,
    _predict,
    pictures=False,
)
