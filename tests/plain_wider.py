"""More models in plain PyTorch: recommenders, diffusion, audio, video, sets, tables, series."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.plain_models import Mlp


class SelfAttention(nn.Module):
    """Attention with separate projections, over any number of tokens, causal on demand."""

    def __init__(self, width: int, heads: int = 4, *, causal: bool = False) -> None:
        super().__init__()
        self.heads, self.causal = heads, causal
        self.q, self.k, self.v, self.o = (nn.Linear(width, width) for _ in range(4))

    def forward(
        self, x: Tensor, memory: Tensor | None = None, mask: Tensor | None = None
    ) -> Tensor:
        memory = x if memory is None else memory
        q, k, v = (
            layer(y).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for layer, y in ((self.q, x), (self.k, memory), (self.v, memory))
        )  # (B, heads, N, d)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=self.causal)
        return self.o(y.transpose(1, 2).flatten(2))


class Block(nn.Module):
    """Pre-norm attention and MLP."""

    def __init__(self, width: int = 32, hidden: int = 64, *, causal: bool = False) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention, self.mlp = SelfAttention(width, causal=causal), Mlp(width, hidden)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        x = x + self.attention(self.norm1(x), mask=mask)
        return x + self.mlp(self.norm2(x))


class Dlrm(nn.Module):
    """Recommender: numbers and ids meet in products of embeddings (DLRM, arXiv 1906.00091)."""

    def __init__(self) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(50, 16) for _ in range(3))
        self.bottom = nn.Sequential(nn.Linear(5, 32), nn.ReLU(), nn.Linear(32, 16), nn.ReLU())
        self.top = nn.Sequential(nn.Linear(22, 64), nn.ReLU(), nn.Linear(64, 1))

    def forward(self, numbers: Tensor, ids: Tensor) -> Tensor:
        dense = self.bottom(numbers)
        each = torch.stack([dense, *(t(ids[:, i]) for i, t in enumerate(self.tables))], 1)
        products = each @ each.transpose(1, 2)
        rows, columns = torch.triu_indices(4, 4, 1)
        return self.top(torch.cat([dense, products[:, rows, columns]], 1))


class TwoTowers(nn.Module):
    """Recommender: ids (B,) of users and items, each its own MLP, and their product."""

    def __init__(self) -> None:
        super().__init__()
        self.users, self.items = nn.Embedding(60, 32), nn.Embedding(60, 32)
        self.left, self.right = Mlp(32, 64), Mlp(32, 64)

    def forward(self, user: Tensor, item: Tensor) -> Tensor:
        return (self.left(self.users(user)) * self.right(self.items(item))).sum(-1)


class SasRec(nn.Module):
    """Recommender: a causal transformer over the items that a user took (arXiv 1808.09781)."""

    def __init__(self) -> None:
        super().__init__()
        self.items, self.places = nn.Embedding(60, 32), nn.Embedding(32, 32)
        self.blocks = nn.ModuleList(Block(causal=True) for _ in range(2))
        self.norm = nn.LayerNorm(32)

    def forward(self, items: Tensor) -> Tensor:
        x = self.items(items) + self.places(torch.arange(items.shape[1], device=items.device))
        for block in self.blocks:
            x = block(x)
        return self.norm(x) @ self.items.weight.t()


class DeepFm(nn.Module):
    """Recommender: a factorisation machine beside an MLP (arXiv 1703.04247)."""

    def __init__(self, fields: int = 6) -> None:
        super().__init__()
        self.embed, self.linear = nn.Embedding(80, 8), nn.Embedding(80, 1)
        self.deep = nn.Sequential(
            nn.Linear(8 * fields, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 1)
        )

    def forward(self, fields: Tensor) -> Tensor:
        x = self.embed(fields)
        pairs = 0.5 * (x.sum(1).square() - x.square().sum(1)).sum(-1, keepdim=True)
        return torch.sigmoid(self.linear(fields).sum(1) + pairs + self.deep(x.flatten(1)))


class DiTBlock(nn.Module):
    """A block whose norms are shifted and scaled by the time step (DiT, arXiv 2212.09748)."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, elementwise_affine=False)
        self.norm2 = nn.LayerNorm(width, elementwise_affine=False)
        self.attention, self.mlp = SelfAttention(width), Mlp(width, 2 * width)
        self.modulate = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        a, b, c, d, e, f = self.modulate(condition)[:, None].chunk(6, dim=-1)
        x = x + c * self.attention(self.norm1(x) * (1 + b) + a)
        return x + f * self.mlp(self.norm2(x) * (1 + e) + d)


class DiT(nn.Module):
    """Diffusion transformer on latents: noise, a time step and a class in, noise out."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(4, 32, 2, 2)
        self.place = nn.Parameter(torch.randn(1, 16, 32) * 0.02)
        self.time = nn.Sequential(nn.Linear(16, 32), nn.SiLU(), nn.Linear(32, 32))
        self.label = nn.Embedding(10, 32)
        self.blocks = nn.ModuleList(DiTBlock() for _ in range(2))
        self.out = nn.Linear(32, 16)

    def forward(self, latents: Tensor, steps: Tensor, labels: Tensor) -> Tensor:
        x = self.patches(latents).flatten(2).transpose(1, 2) + self.place
        angles = steps.float()[:, None] * torch.exp(-torch.arange(8, device=steps.device) / 2.0)
        time = self.time(torch.cat([angles.sin(), angles.cos()], -1).to(x))
        condition = time + self.label(labels)
        for block in self.blocks:
            x = block(x, condition)
        x = self.out(x).unflatten(1, (4, 4)).unflatten(-1, (4, 2, 2))  # (B, h, w, C, 2, 2)
        return x.permute(0, 3, 1, 4, 2, 5).flatten(4).flatten(2, 3)


class UNet(nn.Module):
    """Diffusion U-Net: residual convolutions, attention and cross-attention in the middle."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, width, 3, padding=1)
        self.time = nn.Sequential(nn.Linear(8, width), nn.SiLU(), nn.Linear(width, width))
        self.down = nn.Conv2d(width, 2 * width, 3, 2, 1)
        self.norm = nn.GroupNorm(4, 2 * width)
        self.attend = SelfAttention(2 * width)
        self.text = nn.Linear(12, 2 * width)
        self.cross, self.mlp = SelfAttention(2 * width), Mlp(2 * width, 4 * width)
        self.up = nn.ConvTranspose2d(2 * width, width, 2, 2)
        self.squeeze, self.expand = nn.Conv2d(width, 4 * width, 1), nn.Conv2d(4 * width, width, 1)
        self.last = nn.Conv2d(2 * width, 3, 3, padding=1)

    def forward(self, sample: Tensor, timestep: Tensor, encoder_hidden_states: Tensor) -> Tensor:
        angles = timestep.float()[:, None] * torch.arange(1, 9, device=timestep.device) / 10
        time = self.time(angles.sin().to(sample))
        skip = self.first(sample) + time[:, :, None, None]
        skip = skip + self.expand(F.silu(self.squeeze(skip)))
        x = self.norm(self.down(skip))
        height, width = x.shape[-2:]
        x = x.flatten(2).transpose(1, 2)
        x = x + self.attend(x)
        x = x + self.cross(x, self.text(encoder_hidden_states))
        x = x + self.mlp(x)
        x = self.up(x.transpose(1, 2).unflatten(2, (height, width)))
        return self.last(torch.cat([x, skip], 1))


class Perceiver(nn.Module):
    """A few latents read a long input by cross-attention (arXiv 2103.03206)."""

    def __init__(self) -> None:
        super().__init__()
        self.latents = nn.Parameter(torch.randn(6, 32) * 0.3)
        self.embed = nn.Linear(8, 32)
        self.read, self.block = SelfAttention(32), Block()
        self.mlp, self.head = Mlp(32, 64), nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        latents = self.latents.expand(x.shape[0], -1, -1)
        latents = latents + self.read(latents, self.embed(x))
        latents = latents + self.mlp(latents)
        return self.head(self.block(latents).mean(1))


class SetTransformer(nn.Module):
    """A set with a mask of what is there; the order has no part (arXiv 1810.00825)."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(6, 32)
        self.blocks = nn.ModuleList(Block() for _ in range(2))
        self.seed = nn.Parameter(torch.randn(1, 1, 32))
        self.pool, self.head = SelfAttention(32), Mlp(32, 64)

    def forward(self, points: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        x, mask = self.embed(points), None
        if attention_mask is not None:
            mask = attention_mask.bool()[:, None, None]  # (B, 1, 1, N)
        for block in self.blocks:
            x = block(x, mask)
        return self.head(self.pool(self.seed.expand(x.shape[0], -1, -1), x, mask))


class SpatialGating(nn.Module):
    """gMLP: tokens meet in a linear over their positions (arXiv 2105.08050)."""

    def __init__(self, tokens: int = 12) -> None:
        super().__init__()
        self.embed, self.norm = nn.Embedding(64, 32), nn.LayerNorm(32)
        self.widen, self.narrow = nn.Linear(32, 128), nn.Linear(64, 32)
        self.inner, self.places = nn.LayerNorm(64), nn.Linear(tokens, tokens)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        u, v = F.gelu(self.widen(self.norm(x))).chunk(2, dim=-1)
        v = self.places(self.inner(v).transpose(1, 2)).transpose(1, 2)
        return x + self.narrow(u * v)


class Conformer(nn.Module):
    """Audio: half-step MLPs about attention and a depthwise convolution (arXiv 2005.08100)."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.embed = nn.Linear(16, width)
        self.first, self.last = Mlp(width, 64), Mlp(width, 64)
        self.attention, self.norm = SelfAttention(width), nn.LayerNorm(width)
        self.gate, self.point = nn.Conv1d(width, 2 * width, 1), nn.Conv1d(width, width, 1)
        self.depth = nn.Conv1d(width, width, 5, padding=2, groups=width)
        self.batch = nn.BatchNorm1d(width)

    def forward(self, features: Tensor) -> Tensor:
        x = self.embed(features)
        x = x + 0.5 * self.first(x)
        x = x + self.attention(self.norm(x))
        y = F.glu(self.gate(x.transpose(1, 2)), dim=1)
        x = x + self.point(F.silu(self.batch(self.depth(y)))).transpose(1, 2)
        return x + 0.5 * self.last(x)


class Crnn(nn.Module):
    """Audio: convolutions over a spectrogram, a recurrence over time, an MLP a frame."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d((2, 1)))
        self.rnn = nn.GRU(8 * 8, 32, batch_first=True, bidirectional=True)
        self.head = nn.Sequential(nn.Linear(64, 96), nn.GELU(), nn.Linear(96, 10))

    def forward(self, spectrogram: Tensor) -> Tensor:
        x = self.conv(spectrogram[:, None])  # (B, 8, bins / 2, T)
        return self.head(self.rnn(x.flatten(1, 2).transpose(1, 2))[0])


class FactorisedVideo(nn.Module):
    """Video: attention within frames, then over time, on folded rows (TimeSformer's order)."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 8, 8)
        self.space, self.time = Block(width), Block(width)
        self.head = nn.Linear(width, 7)

    def forward(self, video: Tensor) -> Tensor:
        batch, frames = video.shape[:2]
        x = self.patches(video.flatten(0, 1)).flatten(2).transpose(1, 2)  # (B T, N, C)
        x = self.space(x)
        tokens = x.shape[1]
        x = x.unflatten(0, (batch, frames)).transpose(1, 2).flatten(0, 1)  # (B N, T, C)
        x = self.time(x).unflatten(0, (batch, tokens))
        return self.head(x.mean((1, 2)))


class Detector(nn.Module):
    """Detector: queries read a feature map; classes and boxes by MLPs (arXiv 2005.12872)."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.backbone = nn.Sequential(
            nn.Conv2d(3, 16, 3, 2, 1), nn.ReLU(), nn.Conv2d(16, width, 3, 4, 1)
        )
        self.encoder = Block(width)
        self.queries = nn.Parameter(torch.randn(5, width))
        self.inner, self.cross, self.mlp = (
            SelfAttention(width),
            SelfAttention(width),
            Mlp(width, 64),
        )
        self.classes = nn.Linear(width, 6)
        self.boxes = nn.Sequential(nn.Linear(width, 48), nn.ReLU(), nn.Linear(48, 4))

    def forward(self, pixel_values: Tensor) -> dict[str, Tensor]:
        memory = self.encoder(self.backbone(pixel_values).flatten(2).transpose(1, 2))
        x = self.queries.expand(memory.shape[0], -1, -1)
        x = x + self.inner(x)
        x = x + self.cross(x, memory)
        x = x + self.mlp(x)
        return {"logits": self.classes(x), "boxes": self.boxes(x).sigmoid()}


class PatchTst(nn.Module):
    """Time series: each channel is a sequence of patches of its own (arXiv 2211.14730)."""

    def __init__(self, horizon: int = 8) -> None:
        super().__init__()
        self.embed, self.blocks = nn.Linear(8, 32), nn.ModuleList(Block() for _ in range(2))
        self.head = nn.Linear(4 * 32, horizon)

    def forward(self, series: Tensor) -> Tensor:
        batch, _, channels = series.shape
        mean, scale = series.mean(1, keepdim=True), series.std(1, keepdim=True) + 1e-5
        x = ((series - mean) / scale).transpose(1, 2).flatten(0, 1)  # (B C, T)
        x = self.embed(x.unfold(1, 8, 8))
        for block in self.blocks:
            x = block(x)
        y = self.head(x.flatten(1)).unflatten(0, (batch, channels)).transpose(1, 2)
        return y * scale + mean


class TabTransformer(nn.Module):
    """Tables: columns of names and of numbers become tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.names, self.weight = nn.Embedding(40, 32), nn.Parameter(torch.randn(4, 32))
        self.token = nn.Parameter(torch.randn(1, 1, 32))
        self.blocks, self.head = nn.ModuleList(Block() for _ in range(2)), Mlp(32, 64)

    def forward(self, names: Tensor, numbers: Tensor) -> Tensor:
        tokens = [self.token.expand(len(names), -1, -1), self.names(names)]
        x = torch.cat([*tokens, numbers[..., None] * self.weight], 1)
        for block in self.blocks:
            x = block(x)
        return self.head(x[:, 0])


class Experts(nn.Module):
    """Four MLPs, of which each token's router mixes two."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.embed, self.router = nn.Embedding(64, width), nn.Linear(width, 4)
        self.experts, self.block = nn.ModuleList(Mlp(width, 64) for _ in range(4)), Block(width)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.block(self.embed(ids))
        weights, chosen = self.router(x).softmax(-1).topk(2, dim=-1)
        share = torch.zeros_like(x[..., :4]).scatter(-1, chosen, weights)
        return x + sum(share[..., i, None] * e(x) for i, e in enumerate(self.experts))


class GraphTransformer(nn.Module):
    """Nodes attend along the edges of a graph that comes with the call."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(8, 32)
        self.blocks, self.head = nn.ModuleList(Block() for _ in range(2)), nn.Linear(32, 3)

    def forward(self, nodes: Tensor, adjacency: Tensor) -> Tensor:
        mask = (adjacency > 0)[:, None] | torch.eye(
            nodes.shape[1], dtype=torch.bool, device=nodes.device
        )
        x = self.embed(nodes)
        for block in self.blocks:
            x = block(x, mask)
        return self.head(x)


class CausalTcn(nn.Module):
    """Convolutions that look back alone, and an MLP a step."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.embed = nn.Embedding(64, width)
        self.convs = nn.ModuleList(nn.Conv1d(width, width, 3, dilation=d) for d in (1, 2))
        self.mlp, self.head = Mlp(width, 64), nn.Linear(width, 64)

    def forward(self, input_ids: Tensor) -> Tensor:
        x = self.embed(input_ids).transpose(1, 2)
        for conv in self.convs:
            x = x + F.relu(conv(F.pad(x, (2 * conv.dilation[0], 0))))
        x = x.transpose(1, 2)
        return self.head(x + self.mlp(x))


class DecisionTransformer(nn.Module):
    """Returns, states and actions interleave in one causal sequence (arXiv 2106.01345)."""

    def __init__(self) -> None:
        super().__init__()
        self.ret, self.state, self.action = nn.Linear(1, 32), nn.Linear(6, 32), nn.Linear(3, 32)
        self.blocks, self.head = nn.ModuleList(Block(causal=True) for _ in range(2)), Mlp(32, 64)

    def forward(self, returns: Tensor, states: Tensor, actions: Tensor) -> Tensor:
        tokens = (self.ret(returns), self.state(states), self.action(actions))
        x = torch.stack(tokens, 2).flatten(1, 2)  # (B, 3 T, C)
        for block in self.blocks:
            x = block(x)
        return self.head(x.unflatten(1, (-1, 3))[:, :, 1])


class Nerf(nn.Module):
    """A field of colour and density over points (arXiv 2003.08934)."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(36, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU())
        self.density, self.colour = (
            nn.Linear(64, 1),
            nn.Sequential(nn.Linear(67, 32), nn.ReLU(), nn.Linear(32, 3), nn.Sigmoid()),
        )

    def forward(self, points: Tensor, directions: Tensor) -> Tensor:
        waves = points[..., None] * (2.0 ** torch.arange(6, device=points.device) * math.pi / 8)
        x = self.trunk(torch.cat([waves.sin(), waves.cos()], -1).flatten(-2))
        return torch.cat([self.colour(torch.cat([x, directions], -1)), F.relu(self.density(x))], -1)
