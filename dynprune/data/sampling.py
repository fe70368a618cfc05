"""Training batches whose every sample depends on (seed, step, position) alone.

There is no iterator to save: a run that resumes at step t asks for step t and gets the very
batch that it would have had, whatever happened before, and so does every worker and process.
"""

import hashlib
from collections.abc import Iterator, Sequence
from functools import lru_cache

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from dynprune.data.augment import augment
from dynprune.data.normalise import IMAGENET_MEAN, IMAGENET_STD, normalise
from dynprune.data.segmentation import SegmentationData
from dynprune.errors import UsageError

__all__ = [
    "TrainingBatches",
    "mix",
    "sample_index",
    "shared_positions",
    "training_batch",
    "training_batches",
]


def training_batch(
    data: SegmentationData,
    step: int,
    batch_size: int,
    seed: int,
    crop: Sequence[int],
    scale: Sequence[float] = (0.5, 2.0),
    *,
    flip: float = 0.5,
    photometric: bool = True,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
    rank: int = 0,
    processes: int = 1,
) -> tuple[Tensor, Tensor]:
    """Make the batch of one step.

    Args:
        data: where samples come from; every one is seen once before any is seen again.
        step: which batch, from 0.
        batch_size: samples of the step, over all processes.
        seed: of the order and of every augmentation.
        crop: height and width, in pixels.
        scale: smallest and largest factor of the random resize.
        flip: probability of a horizontal flip.
        photometric: distort the colours.
        mean: of the model's input, see :func:`~dynprune.data.normalise`.
        std: likewise.
        rank: of this process: it gets every ``processes``-th sample, its own first.
        processes: that share the batch.

    Returns:
        normalised pictures, float32 ``(B, 3, h, w)``, and labels, int64 ``(B, h, w)``, void 255.

    Raises:
        InputError: if a sample cannot be read.
        UsageError: if the processes cannot share the batch evenly.
    """
    fill = [255 * value for value in mean]
    samples = []
    for position in shared_positions(batch_size, rank, processes):
        count = step * batch_size + position
        image, label = data.load(sample_index(len(data), count, seed))
        samples.append(
            augment(
                image,
                label,
                seed=mix(seed, "augment", count),
                crop=crop,
                scale=scale,
                flip=flip,
                photometric=photometric,
                fill=fill,
            )
        )
    images = torch.stack([image for image, _ in samples])
    return normalise(images, mean, std), torch.stack([label for _, label in samples])


def shared_positions(batch_size: int, rank: int, processes: int) -> range:
    """Return which samples of a batch are a process's own: every ``processes``-th.

    Raises:
        UsageError: if the processes cannot share the batch evenly.
    """
    if batch_size % processes:
        raise UsageError(
            f"batch_size={batch_size} cannot be shared evenly by {processes} processes; "
            "use a multiple"
        )
    return range(rank, batch_size, processes)


def sample_index(samples: int, count: int, seed: int) -> int:
    """Return which sample is drawn as number ``count``: every epoch is its own permutation."""
    epoch, position = divmod(count, samples)
    return _permutation(samples, mix(seed, "order", epoch))[position]


@lru_cache(maxsize=8)
def _permutation(samples: int, seed: int) -> tuple[int, ...]:
    random = torch.Generator().manual_seed(seed)
    return tuple(torch.randperm(samples, generator=random).tolist())


def mix(*parts: object) -> int:
    """Hash ``parts`` to a seed of 63 bits: equal on every machine, unrelated for neighbours."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


class TrainingBatches(Dataset[tuple[Tensor, Tensor]]):
    """The batches of all steps as a sequence: item t is the batch of step t.

    Args:
        data: where samples come from.
        batch_size: samples of a step, over all processes.
        seed: of the order and of every augmentation.
        crop: height and width, in pixels.
        scale: smallest and largest factor of the random resize.
        flip: probability of a horizontal flip.
        photometric: distort the colours.
        mean: of the model's input.
        std: likewise.
        rank: of this process.
        processes: that share each batch.
    """

    def __init__(
        self,
        data: SegmentationData,
        batch_size: int,
        seed: int,
        crop: Sequence[int],
        scale: Sequence[float] = (0.5, 2.0),
        *,
        flip: float = 0.5,
        photometric: bool = True,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
        rank: int = 0,
        processes: int = 1,
    ) -> None:
        self.data, self.batch_size, self.seed = data, batch_size, seed
        self.crop, self.scale, self.flip, self.photometric = crop, scale, flip, photometric
        self.mean, self.std, self.rank, self.processes = mean, std, rank, processes

    def __getitem__(self, step: int) -> tuple[Tensor, Tensor]:
        return self.share(step, self.rank, self.processes)

    def __call__(self, step: int) -> tuple[Tensor, Tensor]:
        """Return this process's part of a step's batch."""
        return self[step]

    def share(self, step: int, rank: int, processes: int) -> tuple[Tensor, Tensor]:
        """Return any process's part of a step's batch, see :func:`training_batch`."""
        return training_batch(
            self.data,
            step,
            self.batch_size,
            self.seed,
            self.crop,
            self.scale,
            flip=self.flip,
            photometric=self.photometric,
            mean=self.mean,
            std=self.std,
            rank=rank,
            processes=processes,
        )


def training_batches(
    batches: TrainingBatches, steps: range, *, workers: int = 0
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the batches of ``steps`` in order.

    Args:
        batches: what to draw from.
        steps: the steps, such as ``range(resumed, total)``.
        workers: processes that prepare batches ahead; 0 prepares them here. The batches are the
            same either way.
    """
    if not workers:
        for step in steps:
            yield batches[step]
        return
    # A generator of its own keeps the loader from drawing on torch's global random state.
    yield from DataLoader(
        batches,
        batch_size=None,
        sampler=steps,
        num_workers=workers,
        generator=torch.Generator(),
        multiprocessing_context="forkserver",
    )
