"""Attention as people write it by hand: rotary positions, fused layers, shared heads."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WIDTH, HEADS, DIM = 64, 4, 16


def angles(tokens: int, count: int) -> Tensor:
    """Return the angle (tokens, count) of every pair of channels."""
    speeds = 100.0 ** (-torch.arange(count) / count)
    return torch.arange(tokens)[:, None] * speeds


def half_split(x: Tensor) -> Tensor:
    """Turn channel i with channel i + d/2, as Llama does."""
    turn = torch.cat([angles(x.shape[-2], x.shape[-1] // 2)] * 2, -1)
    first, second = x.chunk(2, -1)
    return x * turn.cos() + torch.cat([-second, first], -1) * turn.sin()


def interleaved(x: Tensor) -> Tensor:
    """Turn channel 2 i with channel 2 i + 1, as GPT-J does."""
    turn = angles(x.shape[-2], x.shape[-1] // 2).repeat_interleave(2, -1)
    turned = torch.stack([-x[..., 1::2], x[..., ::2]], -1).flatten(-2)
    return x * turn.cos() + turned * turn.sin()


def by_halves(x: Tensor) -> Tensor:
    """Turn pairs with one cosine each, as RoFormer's own formula does."""
    turn = angles(x.shape[-2], x.shape[-1] // 2)
    even, odd = x[..., ::2], x[..., 1::2]
    cos, sin = turn.cos(), turn.sin()
    return torch.stack([even * cos - odd * sin, even * sin + odd * cos], -1).flatten(-2)


def complex_numbers(x: Tensor) -> Tensor:
    """Turn pairs as complex numbers, as the published Llama does."""
    turn = angles(x.shape[-2], x.shape[-1] // 2)
    pairs = torch.view_as_complex(x.float().reshape(*x.shape[:-1], -1, 2))
    return torch.view_as_real(pairs * torch.polar(torch.ones_like(turn), turn)).flatten(-2)


def partial(x: Tensor) -> Tensor:
    """Turn the first quarter of the channels alone, as GPT-NeoX does."""
    count = x.shape[-1] // 4
    return torch.cat([half_split(x[..., :count]), x[..., count:]], -1)


def in_two_dimensions(x: Tensor) -> Tensor:
    """Turn one half of the channels by the row and the other by the column of a picture's patch."""
    side = round(x.shape[-2] ** 0.5)
    rows, columns = x.unflatten(-2, (side, side)).chunk(2, -1)
    down = half_split(rows.transpose(-2, -3)).transpose(-2, -3)
    return torch.cat([down, half_split(columns)], -1).flatten(-3, -2)


def by_matrices(x: Tensor) -> Tensor:
    """Turn pairs by matrices of two by two, as Flux does."""
    turn = angles(x.shape[-2], x.shape[-1] // 2)
    cos, sin = turn.cos(), turn.sin()
    matrix = torch.stack([cos, -sin, sin, cos], -1).unflatten(-1, (2, 2))
    pairs = x.unflatten(-1, (-1, 1, 2))
    return (matrix[..., 0] * pairs[..., 0] + matrix[..., 1] * pairs[..., 1]).flatten(-2)


ROTATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "half-split": half_split,
    "interleaved": interleaved,
    "by halves": by_halves,
    "complex": complex_numbers,
    "partial": partial,
    "two dimensions": in_two_dimensions,
    "matrices": by_matrices,
}


class Rotary(nn.Module):
    """Separate layers, rotary positions, and a product written in one of several ways."""

    def __init__(self, rotate: str, product: str = "fused", shared: int = 1) -> None:
        super().__init__()
        self.rotate, self.product, self.shared = ROTATIONS[rotate], product, shared
        self.q = nn.Linear(WIDTH, HEADS * DIM)
        self.k = nn.Linear(WIDTH, HEADS * DIM // shared)
        self.v = nn.Linear(WIDTH, HEADS * DIM // shared)
        self.o = nn.Linear(HEADS * DIM, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        """Attend."""
        q, k, v = (
            f(x).view(x.shape[0], x.shape[1], -1, DIM).transpose(1, 2)
            for f in (self.q, self.k, self.v)
        )
        q, k = self.rotate(q), self.rotate(k)
        if self.product == "grouped":
            y = F.scaled_dot_product_attention(q, k, v, enable_gqa=True)
        else:
            k, v = (t.repeat_interleave(self.shared, 1) for t in (k, v))
            y = PRODUCTS[self.product](q, k, v)
        return x + self.o(y.transpose(1, 2).reshape(*x.shape[:2], HEADS * DIM))


def _matmul(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (q @ k.transpose(-2, -1) * DIM**-0.5).softmax(-1) @ v


def _bmm(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    b, h = q.shape[:2]
    q, k, v = (t.flatten(0, 1) for t in (q, k, v))
    scores = torch.baddbmm(
        torch.zeros(b * h, q.shape[1], k.shape[1]), q, k.transpose(1, 2), alpha=DIM**-0.5
    )
    return torch.bmm(scores.softmax(-1), v).unflatten(0, (b, h))


def _einsum(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    weights = torch.einsum("b h i d, b h j d -> b h i j", q, k * DIM**-0.5).softmax(-1)
    return torch.einsum("b h i j, b h j d -> b h i d", weights, v)


PRODUCTS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "fused": F.scaled_dot_product_attention,
    "matmul": _matmul,
    "bmm": _bmm,
    "einsum": _einsum,
}


class Fused(nn.Module):
    """One layer for queries, keys and values; ``order`` is how its rows are laid out."""

    def __init__(self, order: str = "3hd") -> None:
        super().__init__()
        self.order = order
        self.qkv, self.proj = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        """Attend."""
        b, n, c = x.shape
        if self.order == "3hd":  # timm
            q, k, v = self.qkv(x).reshape(b, n, 3, 4, c // 4).permute(2, 0, 3, 1, 4).unbind(0)
        elif self.order == "h3d":  # GPT-NeoX
            q, k, v = self.qkv(x).view(b, n, 4, 48).transpose(1, 2).split(16, -1)
        else:  # chunks
            q, k, v = (
                t.view(b, n, 4, 16).transpose(1, 2) for t in self.qkv(x).split([64, 64, 64], -1)
            )
        y = F.scaled_dot_product_attention(q, k, v)
        return x + self.proj(y.transpose(1, 2).reshape(b, n, c))


class Parallel(nn.Module):
    """Queries, keys, values and the hidden layer of an MLP in one layer, as in ViT-22B."""

    def __init__(self) -> None:
        super().__init__()
        self.fused = nn.Linear(WIDTH, 3 * WIDTH + 256)
        self.out, self.down = nn.Linear(WIDTH, WIDTH), nn.Linear(256, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        """Attend, and run the MLP beside it."""
        b, n, c = x.shape
        qkv, hidden = self.fused(x).split([3 * c, 256], -1)
        q, k, v = qkv.reshape(b, n, 3, 4, c // 4).permute(2, 0, 3, 1, 4).unbind(0)
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, c)
        return x + self.out(y) + self.down(F.gelu(hidden))
