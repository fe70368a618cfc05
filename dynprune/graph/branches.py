"""Record the other branches of a model whose code asks for the values of its tensors."""

import logging
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from dynprune.example import Example
from dynprune.graph.fallback import Recorded, record_one_run
from dynprune.host.trial import Snapshot

__all__ = ["record_branches"]

logger = logging.getLogger(__name__)

MOST = 8  # recordings of other branches

Answer = bool | int | float
Line = tuple[str, int]  # of code: file and number

#: What Python code learns of a tensor's values by.
_QUESTIONS = {
    Tensor.__bool__, Tensor.__float__, Tensor.__index__, Tensor.__int__, Tensor.equal,
    Tensor.allclose, Tensor.is_nonzero, Tensor.item, torch.allclose, torch.equal, torch.is_nonzero,
}  # fmt: skip
_INSIDE = (str(Path(torch.__file__).parent), __file__)


def record_branches(model: nn.Module, call: Example, kept: Snapshot) -> tuple[list[Recorded], bool]:
    """Record what a model runs where its questions about values are answered otherwise.

    Every line of code that asks gets other answers than the example gives, one line a recording.
    A recording that fails is left out: an input that leads there has no output.

    Args:
        model: in eval mode.
        call: that it understands.
        kept: the state from which every run starts.

    Returns:
        The recordings, and whether they hold every line that asks.
    """
    asked = _Answers()
    with asked:
        call.run(model)
    kept.put_back()
    turns = [(line, turn) for line in asked.kinds for turn in _turns(asked.kinds[line])]
    recordings = []
    for line, turn in islice(turns, MOST):
        try:
            with _Answers(line, turn, asked.times[line]):
                recordings.append(record_one_run(model, call))
        except Exception as error:  # the model's own code, on values that it does not take
            logger.debug("The branch at %s:%d fails: %s", *line, error)
        kept.put_back()
    return recordings, len(turns) <= MOST


class _Answers(TorchFunctionMode):
    """Note which lines ask for a tensor's values, and give one of them other answers.

    Args:
        line: that gets other answers; none where None.
        turn: makes one out of the true one.
        most: answers that are turned, so that a loop that waits for another one ends.

    Attributes:
        times: how often each line asked.
        kinds: type of the answers that it got first.
    """

    def __init__(
        self,
        line: Line | None = None,
        turn: Callable[[Any], Answer] | None = None,
        most: int = 0,
    ) -> None:
        super().__init__()
        self.line, self.turn, self.most = line, turn, most
        self.times: Counter[Line] = Counter()
        self.kinds: dict[Line, type] = {}

    def __torch_function__(
        self,
        function: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        answer = function(*args, **(kwargs or {}))
        if function not in _QUESTIONS:
            return answer
        line = _asking()
        self.times[line] += 1
        self.kinds.setdefault(line, type(answer))
        turned = line == self.line and self.turn is not None and self.times[line] <= self.most
        return self.turn(answer) if turned and self.turn else answer


def _asking() -> Line:
    """Find the innermost line of code outside of torch."""
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_INSIDE):
        frame = frame.f_back
    return frame.f_code.co_filename, frame.f_lineno


def _turns(kind: type) -> Iterator[Callable[[Any], Answer]]:
    """Yield what makes other answers: no for yes, other sizes, and beyond any bound."""
    if kind is bool:
        yield lambda value: not value
    elif kind is int:
        yield lambda value: value + 1
        yield lambda value: value - 1
    elif kind is float:
        yield lambda value: 1000.0 * (1.0 + abs(value))
        yield lambda value: -1000.0 * (1.0 + abs(value))
