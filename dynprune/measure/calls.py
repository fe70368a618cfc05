"""Samples of a data set as calls of a model, each made when it is asked for."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import overload

from dynprune.data import Preprocessing, SegmentationData
from dynprune.example import Example
from dynprune.tasks.task import Task, spread_over

__all__ = ["PictureCalls", "TaskCalls", "spread"]


class _Calls(Sequence[Example]):
    """Calls that are made when they are asked for; nothing is kept, so that any number fits."""

    @overload
    def __getitem__(self, index: int) -> Example: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[Example]: ...

    def __getitem__(self, index: int | slice) -> Example | Sequence[Example]:
        if isinstance(index, slice):
            return [self._call(i) for i in range(*index.indices(len(self)))]
        return self._call(index)

    @abstractmethod
    def _call(self, index: int) -> Example:
        """Make one call."""


class PictureCalls(_Calls):
    """One call a picture.

    Args:
        data: the pictures.
        preprocessing: how they go in.
        device: where the model is.
    """

    def __init__(
        self,
        data: SegmentationData,
        preprocessing: Preprocessing | None = None,
        *,
        device: str = "cpu",
    ) -> None:
        self.data, self.device = data, device
        self.preprocessing = preprocessing or Preprocessing()

    def __len__(self) -> int:
        return len(self.data)

    def _call(self, index: int) -> Example:
        if not -len(self) <= index < len(self):
            raise IndexError(f"picture {index} of {len(self)}")
        image, _ = self.data.load(index % len(self))
        return Example((self.preprocessing(image, self.device),))


def spread(data: SegmentationData, count: int | None) -> SegmentationData:
    """Return ``count`` samples of a data set, evenly over it; all of them where there are fewer."""
    if count is None or count >= len(data):
        return data
    return data.subset([position * len(data) // count for position in range(count)])


class TaskCalls(_Calls):
    """One call a sample of any task, evenly over its data.

    Args:
        task: whose samples are called.
        count: of the samples; all of them where None or more than there are.
        device: where the model is.
    """

    def __init__(self, task: Task, count: int | None = None, *, device: str = "cpu") -> None:
        self.task, self.device = task, device
        self.indices = list(spread_over(len(task), len(task) if count is None else count))

    @property
    def names(self) -> list[str]:
        """The name of every sample."""
        return [self.task.names[index] for index in self.indices]

    def __len__(self) -> int:
        return len(self.indices)

    def _call(self, index: int) -> Example:
        return self.task.call(self.indices[index], self.device)
