"""A small sound model, and forms of it that are each wrong in one situation alone."""

import sys
import threading
import time

import torch
from torch import Tensor, nn

from dynprune.example import Example
from tests.plain_wider import Block

LENGTH, ROWS = 10, 3


class Net(nn.Module):
    """Two blocks over a sequence with a mask; sound, and as fast as can be."""

    def __init__(self, *, causal: bool = False) -> None:
        super().__init__()
        self.embed = nn.Linear(6, 16)
        self.blocks = nn.ModuleList(Block(16, 32, causal=causal) for _ in range(2))
        self.head = nn.Linear(16, 4)
        self.causal = causal

    def forward(
        self,
        points: Tensor,
        attention_mask: Tensor | None = None,
        return_dict: bool = True,
    ) -> dict[str, Tensor] | tuple[Tensor, Tensor]:
        mask = None
        if attention_mask is not None and not self.causal:
            mask = attention_mask.bool()[:, None, None]
        x = self.embed(points)
        for block in self.blocks:
            x = block(x, mask)
        logits = self.head(x) + self.wrong(points, attention_mask, return_dict)
        return {"logits": logits} if return_dict else (logits,)

    def wrong(self, points: Tensor, mask: Tensor | None, return_dict: bool) -> float | Tensor:
        """What a defect adds."""
        return 0.0


class AloneWrong(Net):
    def wrong(self, points, mask, return_dict):
        return float(points.shape[0] == 1)


class OrderWrong(Net):
    def wrong(self, points, mask, return_dict):
        return float(bool((points[:1, 0, 0] > points[-1:, 0, 0]).any()))


class FiveWrong(Net):
    def wrong(self, points, mask, return_dict):
        return float(points.shape[0] == 5)


class NoneWrong(Net):
    def wrong(self, points, mask, return_dict):
        if not points.shape[0]:
            raise RuntimeError("no rows")
        return 0.0


class LongWrong(Net):
    def wrong(self, points, mask, return_dict):
        return float(points.shape[1] == LENGTH + 3)


class TupleWrong(Net):
    def wrong(self, points, mask, return_dict):
        return float(not return_dict)


class PaddingWrong(Net):
    def wrong(self, points, mask, return_dict):
        return 0.0 if mask is None else float(bool((mask == 0).any()))


class BoolMaskWrong(Net):
    def wrong(self, points, mask, return_dict):
        return 0.0 if mask is None else float(mask.dtype == torch.bool)


class FutureWrong(Net):
    def __init__(self) -> None:
        super().__init__(causal=True)

    def wrong(self, points, mask, return_dict):
        return points[:, -1:, :1].detach() * 0.1


class PlaceWrong(Net):
    def forward(self, *args, **kwargs):
        found = super().forward(*args, **kwargs)
        return {"logits": found["logits"] + 1} if len(args) > 1 else found


class MemoryWrong(Net):
    """Remembers whether it ever saw four rows."""

    seen = False

    def wrong(self, points, mask, return_dict):
        before, self.seen = self.seen, self.seen or points.shape[0] == 4
        return float(before)


class SharedWrong(Net):
    """Keeps a call's input where another thread's call overwrites it."""

    owner = None

    def wrong(self, points, mask, return_dict):
        self.owner = mine = threading.get_ident()
        time.sleep(1e-3)
        return float(self.owner != mine)


class NestedWrong(Net):
    tidy = True

    def __init__(self) -> None:
        super().__init__()
        self.depths = {}

    def __getstate__(self):
        return {**self.__dict__, "depths": {}}

    def forward(self, *args, **kwargs):
        me = threading.get_ident()
        self.depths[me] = depth = self.depths.get(me, 0) + 1
        try:
            found = super().forward(*args, **kwargs)
        except BaseException:
            if self.tidy:
                self.depths[me] -= 1
            raise
        self.depths[me] -= 1
        wrong = isinstance(found, dict) and depth > 1
        return {"logits": found["logits"] + 1} if wrong else found


class UntidyWrong(NestedWrong):
    tidy = False


class PartWrong(Net):
    """Its blocks know whether the whole model runs."""

    def __init__(self) -> None:
        super().__init__()
        self.head = Knowing(nn.Linear(16, 4), nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4))

    def forward(self, *args, **kwargs):
        before, self.head.inside.whole = self.head.inside.whole, True
        try:
            return super().forward(*args, **kwargs)
        finally:
            self.head.inside.whole = before


class PartSound(PartWrong):
    """The same modules, which know nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.head.always = True


class Inside(threading.local):
    """Whether the whole model runs, for each thread: one thread's call is no other's."""

    whole = False

    def __deepcopy__(self, memo):
        return Inside()


class Knowing(nn.Sequential):
    always = False

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__(*layers)
        self.inside = Inside()

    def forward(self, x):
        return super().forward(x) + (0.0 if self.always or self.inside.whole else 1.0)


class HookWrong(Net):
    """Reads a layer's weights past the layer."""

    def __init__(self) -> None:
        super().__init__()
        self.head = Past(16, 4)


class Past(nn.Linear):
    def __call__(self, x):
        return self.forward(x)


class PairWrong(Net):
    """Knows whether another model calls it."""

    def wrong(self, points, mask, return_dict):
        frame, callers = sys._getframe(), []
        while frame is not None:
            callers.append(type(frame.f_locals.get("self")).__name__)
            frame = frame.f_back
        return float("_Pair" in callers)


class LayoutWrong(Net):
    def wrong(self, points, mask, return_dict):
        return float(not points.is_contiguous())


class WritesWrong(Net):
    def wrong(self, points, mask, return_dict):
        points.mul_(1.5)
        return 0.0


class GradWrong(Net):
    def wrong(self, points, mask, return_dict):
        return float(torch.is_grad_enabled())


class DoubleWrong(Net):
    def wrong(self, points, mask, return_dict):
        return 1e-4 * (points.dtype == torch.float64)


class HalfWrong(Net):
    def wrong(self, points, mask, return_dict):
        return float(points.dtype == torch.bfloat16) * 3


class CastWrong(Net):
    """Autocast leaves something behind."""

    before = False

    def wrong(self, points, mask, return_dict):
        now = torch.is_autocast_enabled("cpu")
        self.before |= now
        return float(self.before and not now)


class StaleWrong(Net):
    """Goes on with the weights of its first call, until it trains."""

    kept = None

    def wrong(self, points, mask, return_dict):
        weight = self.head.weight.detach()
        if self.kept is None:
            self.kept = weight.clone()
        return (self.kept.to(weight) - weight).sum() * 10

    def train(self, mode=True):
        self.kept = None
        return super().train(mode)


class CopyWrong(Net):
    """A copy shares its head with the model."""

    def __deepcopy__(self, memo):
        copied = type(self)()
        copied.load_state_dict(self.state_dict())
        copied.head = self.head
        return copied.train(self.training)


class TrainedWrong(Net):
    """Training mode leaves something behind."""

    trained = False

    def train(self, mode=True):
        self.trained |= mode
        return super().train(mode)

    def wrong(self, points, mask, return_dict):
        return float(self.trained)


class StateWrong(Net):
    """Leaves a weight out of its state dict."""

    def state_dict(self, *args, **kwargs):
        found = super().state_dict(*args, **kwargs)
        found.pop("head.bias", None)
        return found

    def load_state_dict(self, state, strict=True, assign=False):
        return super().load_state_dict(state, strict=False, assign=assign)


class ExportWrong(Net):
    def wrong(self, points, mask, return_dict):
        return float(torch.compiler.is_exporting())


class CompileWrong(Net):
    def wrong(self, points, mask, return_dict):
        return float(torch.compiler.is_dynamo_compiling() and not torch.compiler.is_exporting())


def call(rows: int = ROWS) -> Example:
    """A call whose first row has the smallest first value."""
    points = torch.randn(rows, LENGTH, 6, generator=torch.Generator().manual_seed(rows))
    points[:, 0, 0] = torch.arange(rows) * 0.3
    mask = torch.ones(rows, LENGTH, dtype=torch.long)
    return Example((), {"points": points, "attention_mask": mask})


def made(kind: type[Net], **arguments: bool) -> Net:
    """A model in eval mode with the same weights, whatever its defect."""
    torch.manual_seed(0)
    model = kind(**arguments)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn_like(parameter)
            parameter.copy_(noise * 0.4 if parameter.dim() > 1 else 1 + 0.1 * noise)
    for module in model.modules():
        module.training = False
    return model
