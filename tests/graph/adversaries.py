"""Models whose hidden neurons look prunable and are not, each in its own way."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class TwoLinears(nn.Module):
    """Two linears of 8 -> 16 -> 8 with anything between."""

    def __init__(self, between: Callable[[Tensor], Tensor] = F.gelu, hidden: int = 16) -> None:
        super().__init__()
        self.fc1 = nn.Linear(8, hidden)
        self.fc2 = nn.Linear(hidden if between is not crossed_halves else hidden // 2, 8)
        self.between = between

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.between(self.fc1(x)))


def softmax(h: Tensor) -> Tensor:
    return h.softmax(-1)


def unit_length(h: Tensor) -> Tensor:
    return F.normalize(h, dim=-1)


def root_mean_square(h: Tensor) -> Tensor:
    return h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + 1e-6)


def interleaved(h: Tensor) -> Tensor:
    """A reshape in the wrong order: channels and tokens are mixed."""
    B, N, C = h.shape
    return F.relu(h).reshape(B, C, N).transpose(1, 2)


def shuffled(h: Tensor) -> Tensor:
    """A channel shuffle: each channel stays whole but the order changes."""
    return h.unflatten(-1, (2, -1)).transpose(-1, -2).flatten(-2)


def crossed_halves(h: Tensor) -> Tensor:
    value, gate = h.chunk(2, -1)
    return value * gate.flip(-1).sigmoid()


def sorted_channels(h: Tensor) -> Tensor:
    return h.sort(-1).values


def running_sum(h: Tensor) -> Tensor:
    return h.cumsum(-1)


def decided(h: Tensor) -> Tensor:
    return torch.where(h > 0, h, h * 0.1)


def written(h: Tensor) -> Tensor:
    """Some channels are changed in place."""
    h[..., :4].mul_(2.0)
    return h


def blended(h: Tensor) -> Tensor:
    return torch.lerp(h, h * h, 0.5)


class Normed(nn.Module):
    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.fc1, self.norm, self.fc2 = nn.Linear(8, 16), norm, nn.Linear(16, 8)

    def forward(self, x: Tensor) -> Tensor:
        h = self.fc1(x)
        if isinstance(self.norm, nn.GroupNorm):
            return self.fc2(self.norm(h.transpose(1, 2)).transpose(1, 2))
        return self.fc2(self.norm(h))


class AlsoReturned(TwoLinears):
    def forward(self, x: Tensor) -> dict[str, Tensor]:
        h = F.gelu(self.fc1(x))
        return {"logits": self.fc2(h), "hidden": h}


class Residual(nn.Module):
    """No norm anywhere: two linears write to one stream that two linears read."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.fc1 = nn.Linear(8, 12), nn.Linear(12, 16)
        self.fc2, self.head = nn.Linear(16, 12), nn.Linear(12, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(x + self.fc2(F.relu(self.fc1(x))))


class AddedToInput(TwoLinears):
    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.fc1(x) + x.repeat(1, 1, 2))


class ReadsItself(nn.Module):
    """A square layer that is fed its own output."""

    def __init__(self) -> None:
        super().__init__()
        self.loop, self.head = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.loop(torch.tanh(self.loop(x)))))


class WeightReadOutside(TwoLinears):
    def forward(self, x: Tensor) -> Tensor:
        h = F.gelu(self.fc1(x))
        return self.fc2(h) + F.gelu(F.linear(x, self.fc1.weight)).mean(-1, keepdim=True)


class CalledTwice(TwoLinears):
    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x))) + self.fc2(F.gelu(self.fc1(-x)))


class SharedUnderTwoNames(TwoLinears):
    def __init__(self) -> None:
        super().__init__()
        self.again = self.fc1

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)) * torch.sigmoid(self.again(-x)))


class ComputedWeight(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.utils.parametrizations.weight_norm(nn.Linear(8, 16))
        self.fc2 = nn.Linear(16, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class DoesMore(nn.Linear):
    """A linear with an adapter inside: its output is not a linear map of its weight alone."""

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(super().forward(x)) * 2


class LowRank(nn.Linear):
    """A linear whose output passes a second one, with a weight of its own."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs)
        self.second = nn.Parameter(torch.randn(outputs, outputs))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(super().forward(x), self.second)


class TwoInOne(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = LowRank(8, 16), nn.Linear(16, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.fc1(x))


class CustomLinear(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = DoesMore(8, 16), nn.Linear(16, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.fc1(x))


class WideConvolution(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Conv1d(8, 16, 1), nn.Conv1d(16, 8, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x.transpose(1, 2)))).transpose(1, 2)


class PackedAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(x, x, x)[0]


class Attention(nn.Module):
    """Plain attention, with something done to queries and keys."""

    def __init__(self, change: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.q, self.k = nn.Linear(8, 8), nn.Linear(8, 8)
        self.v, self.o = nn.Linear(8, 8), nn.Linear(8, 8)
        self.change = change

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            layer(x).unflatten(-1, (2, 4)).transpose(1, 2) for layer in (self.q, self.k, self.v)
        )
        q, k = self.change(q), self.change(k)
        return self.o(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


def exponential(h: Tensor) -> Tensor:
    return h.exp()


class KeysAreValues(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q, self.kv, self.o = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        q, kv = self.q(x)[:, None], self.kv(x)[:, None]
        return self.o(F.scaled_dot_product_attention(q, kv, kv)[:, 0])


class LinearAttention(Attention):
    """Keys meet values over tokens first: no head dimension is summed over."""

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.q(x).softmax(-1), self.k(x).softmax(1), self.v(x)
        return self.o(q @ (k.transpose(1, 2) @ v))


class UnevenHeads(Attention):
    """The first head reads one token-wise factor more: two of its channels are one neuron."""

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            layer(x).unflatten(-1, (2, 4)).transpose(1, 2) for layer in (self.q, self.k, self.v)
        )
        v = torch.cat([v[:, :1] + v[:, :1].flip(-1), v[:, 1:]], 1)
        return self.o(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


#: name -> (builder, first words of the reason that a user reads)
REFUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "a LayerNorm between": (lambda: Normed(nn.LayerNorm(16)), "a LayerNorm mixes its channels"),
    "an RMSNorm between": (lambda: Normed(nn.RMSNorm(16)), "RMSNorm|averages its channels"),
    "a GroupNorm between": (lambda: Normed(nn.GroupNorm(4, 16)), "a GroupNorm mixes"),
    "a softmax over channels": (lambda: TwoLinears(softmax), "a softmax mixes its channels"),
    "an L2 norm over channels": (lambda: TwoLinears(unit_length), "takes a norm of its channels"),
    "an own RMS norm": (lambda: TwoLinears(root_mean_square), "averages its channels"),
    "a running sum": (lambda: TwoLinears(running_sum), "a running sum mixes its channels"),
    "an interleaved reshape": (lambda: TwoLinears(interleaved), "mixed with other axes before fc2"),
    "a channel shuffle": (lambda: TwoLinears(shuffled), "another order at fc2 than at fc1"),
    "crossed GLU halves": (lambda: TwoLinears(crossed_halves), "another order at fc1 than at fc1"),
    "sorted channels": (lambda: TwoLinears(sorted_channels), "sort, of which nothing is known"),
    "lerp": (lambda: TwoLinears(blended), "lerp, of which nothing is known"),
    "a decision": (lambda: TwoLinears(decided), "gt, of which nothing is known"),
    "channels written in place": (lambda: TwoLinears(written), "overwritten in place"),
    "the hidden tensor returned": (AlsoReturned, "returned as an output of the model"),
    "a residual stream": (Residual, "addition joins the outputs of several layers"),
    "added to the input": (AddedToInput, "added to values that no linear layer"),
    "a layer that reads itself": (ReadsItself, "called 2 times"),
    "a weight read outside": (WeightReadOutside, "also read outside of it"),
    "a module called twice": (CalledTwice, "fc1 is called 2 times"),
    "a module of two names": (SharedUnderTwoNames, "fc1 is called 2 times"),
    "a computed weight": (ComputedWeight, "is computed, not stored"),
    "a linear that does more": (CustomLinear, "fc1 does more than one linear map"),
    "two linears in one": (TwoInOne, "fc1 does more than one linear map"),
    "a wide convolution": (WideConvolution, "fc2 is a convolution of 3 pixels"),
    "packed projections": (PackedAttention, "keeps its weight as in_proj_weight"),
    "normalised queries": (lambda: Attention(unit_length), "takes a norm of its channels"),
    "positive queries": (lambda: Attention(exponential), "would not stay zero: exp"),
    "keys that are values": (KeysAreValues, "queries or keys that o reads as well"),
    "linear attention": (lambda: LinearAttention(F.relu), "softmax mixes|in a product"),
    "uneven heads": (lambda: UnevenHeads(F.relu), "different numbers of neurons|another order"),
}
