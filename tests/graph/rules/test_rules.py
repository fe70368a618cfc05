"""Rules name real operations, and move labels exactly as the operation moves values."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dynprune.example import Example
from dynprune.graph.rules import RULES
from dynprune.graph.trace import trace
from dynprune.graph.walk import Walk


@pytest.mark.parametrize("name", RULES)
def test_every_rule_is_of_an_aten_operation(name):
    assert hasattr(torch.ops.aten, name) or hasattr(torch.ops.aten, f"{name}_")


#: Maps from (2, 6, 8) whose every value is one value of the input, or a function of one.
MOVES = {
    "view": lambda h: h.view(2, 6, 2, 4),
    "reshape": lambda h: h.reshape(2, 3, 16),
    "flatten": lambda h: h.flatten(1),
    "unflatten": lambda h: h.unflatten(-1, (2, 4)),
    "permute": lambda h: h.permute(2, 0, 1),
    "transpose": lambda h: h.transpose(1, 2).contiguous(),
    "slice": lambda h: h[:, 1:4, ::2],
    "select": lambda h: h[:, 2],
    "chunk": lambda h: h.chunk(2, -1)[1],
    "split": lambda h: h.split([3, 5], -1)[1],
    "unbind": lambda h: h.unbind(1)[3],
    "cat of itself": lambda h: torch.cat([h, h.flip(-1)], -1),
    "cat along tokens": lambda h: torch.cat([h[:, :2], h], 1),
    "stack": lambda h: torch.stack([h, h.roll(1, -1)], 1),
    "roll channels": lambda h: h.roll(3, -1),
    "roll tokens": lambda h: h.roll(3, 1),
    "flip": lambda h: h.flip(-1),
    "repeat": lambda h: h.repeat(1, 1, 2),
    "repeat_interleave": lambda h: h.repeat_interleave(2, -1),
    "expand": lambda h: h[:, None].expand(2, 3, 6, 8),
    "known index": lambda h: h[..., torch.tensor([3, 1, 1, 7])],
    "token index": lambda h: h[:, torch.tensor([0, 5])],
    "index_select": lambda h: h.index_select(-1, torch.tensor([2, 0])),
    "pad tokens": lambda h: F.pad(h, (0, 0, 1, 1)),
    "pad channels": lambda h: F.pad(h, (2, 1)),
    "pixel_shuffle": lambda h: F.pixel_shuffle(h.transpose(1, 2)[..., None], 2),
    "activation": lambda h: F.gelu(h),
    "in place": lambda h: h.relu_().mul_(2.0),
    "windows": lambda h: h.view(2, 3, 2, 2, 4).permute(0, 1, 3, 2, 4).reshape(12, 2, 4),
    "movedim": lambda h: h.movedim(1, -1),
    "squeeze": lambda h: h[:, :, None].squeeze(2),
}


class Moved(nn.Module):
    """A linear and a movement, whose result is kept apart from the output."""

    def __init__(self, move) -> None:
        super().__init__()
        self.fc, self.move = nn.Linear(4, 8), move

    def forward(self, x: Tensor) -> Tensor:
        return self.move(self.fc(x))


@pytest.mark.parametrize("name", MOVES)
def test_labels_move_as_values_do(name, monkeypatch):
    """Labels equal the operation run on a tensor that holds each channel's number."""
    move = MOVES[name]
    walk = Walk(trace(Moved(move), Example((torch.randn(2, 6, 4),))), RULES)
    seen = {}
    disqualify = walk.disqualify

    def remember(nodes, reason):
        seen.update({node: walk.labels(node) for node in nodes})
        disqualify(nodes, reason)

    monkeypatch.setattr(walk, "disqualify", remember)
    walk.run()
    (labels,) = (found for found in seen.values() if found is not None)
    numbers = torch.arange(1.0, 9.0).expand(2, 6, 8).contiguous()
    expected = move(numbers)
    if name == "activation":  # GELU moves nothing.
        expected = numbers
    if name == "in place":
        expected = expected / 2
    if name == "pad tokens":  # Rows of padding belong to the same channels.
        expected = expected[:, 2:3].expand_as(expected)
    assert torch.equal(labels.double(), expected.double())
