"""Pictures of a data set as calls of a model, each made when it is asked for."""

from collections.abc import Sequence
from typing import overload

from dynprune.data import IMAGENET_MEAN, IMAGENET_STD, SegmentationData, normalise
from dynprune.example import Example

__all__ = ["PictureCalls", "spread"]


class PictureCalls(Sequence[Example]):
    """One call a picture, at full size; nothing is kept, so that a data set of any size fits.

    Args:
        data: the pictures.
        device: where the model is.
        mean: of the model's input, see :func:`~dynprune.data.normalise`.
        std: likewise.
    """

    def __init__(
        self,
        data: SegmentationData,
        *,
        device: str = "cpu",
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
    ) -> None:
        self.data, self.device, self.mean, self.std = data, device, mean, std

    def __len__(self) -> int:
        return len(self.data)

    @overload
    def __getitem__(self, index: int) -> Example: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[Example]: ...

    def __getitem__(self, index: int | slice) -> Example | Sequence[Example]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(f"picture {index} of {len(self)}")
        image, _ = self.data.load(index % len(self))
        return Example((normalise(image[None].to(self.device), self.mean, self.std),))


def spread(data: SegmentationData, count: int | None) -> SegmentationData:
    """Give ``count`` samples of a data set, evenly over it; all of them where there are fewer."""
    if count is None or count >= len(data):
        return data
    return data.subset([position * len(data) // count for position in range(count)])
