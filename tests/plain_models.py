"""Models in plain PyTorch, written the way libraries that cannot be installed here write them."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Mlp(nn.Module):
    """Two linears with a GELU between."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.act(self.fc1(x)))


class FusedAttention(nn.Module):
    """Attention with one fused qkv linear and hard-coded reshapes, in eager products."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.head_dim = heads, width // heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        B, N, C = x.shape
        qkv = self.qkv(x).reshape(B, N, 3, self.heads, self.head_dim).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)  # each (B, heads, N, head_dim)
        attention = ((q * self.head_dim**-0.5) @ k.transpose(-2, -1)).softmax(-1)
        return self.proj((attention @ v).transpose(1, 2).reshape(B, N, C))


class LayerScale(nn.Module):
    """A learned factor a channel."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((width,), 0.1))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class FusedViTBlock(nn.Module):
    """Pre-norm block with layer scale."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = FusedAttention(width, heads)
        self.ls1, self.ls2 = LayerScale(width), LayerScale(width)
        self.mlp = Mlp(width, 2 * width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.ls1(self.attn(self.norm1(x)))
        return x + self.ls2(self.mlp(self.norm2(x)))


class FusedViT(nn.Module):
    """A vision transformer with fused qkv, a class token and position embeddings."""

    def __init__(self, width: int = 32, heads: int = 4, depth: int = 2) -> None:
        super().__init__()
        self.patch_embed = nn.Conv2d(3, width, 8, 8)
        self.cls_token = nn.Parameter(torch.randn(1, 1, width))
        self.pos_embed = nn.Parameter(torch.randn(1, 17, width))
        self.blocks = nn.Sequential(*[FusedViTBlock(width, heads) for _ in range(depth)])
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch_embed(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), x], 1) + self.pos_embed
        return self.head(self.norm(self.blocks(x))[:, 0])


class ReducedAttention(nn.Module):
    """Attention with a fused kv linear over a strided convolution of the tokens."""

    def __init__(self, width: int, heads: int, ratio: int) -> None:
        super().__init__()
        self.heads, self.width = heads, width
        self.q = nn.Linear(width, width)
        self.kv = nn.Linear(width, 2 * width)
        self.sr = nn.Conv2d(width, width, ratio, ratio)
        self.norm = nn.LayerNorm(width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, height: int, width: int) -> Tensor:
        B, N, C = x.shape
        q = self.q(x).reshape(B, N, self.heads, C // self.heads).permute(0, 2, 1, 3)
        small = self.sr(x.permute(0, 2, 1).reshape(B, C, height, width))
        small = self.norm(small.reshape(B, C, -1).permute(0, 2, 1))
        kv = self.kv(small).reshape(B, -1, 2, self.heads, C // self.heads).permute(2, 0, 3, 1, 4)
        k, v = kv[0], kv[1]
        x = F.scaled_dot_product_attention(q, k, v)
        return self.proj(x.transpose(1, 2).reshape(B, N, C))


class ConvMlp(nn.Module):
    """A Mix-FFN whose linears are 1x1 convolutions."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(width, hidden, 1),
            nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden),
            nn.GELU(),
            nn.Dropout(0.1),
            nn.Conv2d(hidden, width, 1),
            nn.Dropout(0.1),
        )

    def forward(self, x: Tensor, height: int, width: int) -> Tensor:
        B, _, C = x.shape
        image = x.transpose(1, 2).reshape(B, C, height, width)
        return self.layers(image).flatten(2).transpose(1, 2)


class ReducedBlock(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = ReducedAttention(width, heads, 2)
        self.mlp = ConvMlp(width, 2 * width)

    def forward(self, x: Tensor, height: int, width: int) -> Tensor:
        x = x + self.attn(self.norm1(x), height, width)
        return x + self.mlp(self.norm2(x), height, width)


class FusedPvt(nn.Module):
    """A pyramid transformer of two stages with fused kv and 1x1 convolutions."""

    def __init__(self) -> None:
        super().__init__()
        widths, heads = (16, 32), (1, 4)
        self.embeds = nn.ModuleList(
            nn.Conv2d(inputs, width, 4, 4)
            for inputs, width in zip((3, *widths[:1]), widths, strict=True)
        )
        self.blocks = nn.ModuleList(map(ReducedBlock, widths, heads))
        self.norms = nn.ModuleList(map(nn.LayerNorm, widths))
        self.head = nn.Linear(widths[-1], 10)

    def forward(self, x: Tensor) -> Tensor:
        for embed, block, norm in zip(self.embeds, self.blocks, self.norms, strict=True):
            x = embed(x)
            B, C, height, width = x.shape
            x = norm(block(x.flatten(2).transpose(1, 2), height, width))
            x = x.transpose(1, 2).reshape(B, C, height, width)
        return self.head(x.mean((2, 3)))


class MmSegformerAttention(nn.Module):
    """SegFormer's attention on nn.MultiheadAttention, whose projections are packed."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(width, heads, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.attn(x, x, x, need_weights=False)[0]


class MmSegformer(nn.Module):
    """SegFormer with Conv2d linears and nn.MultiheadAttention."""

    def __init__(self, width: int = 32, heads: int = 2) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, width, 7, 4, 3)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = MmSegformerAttention(width, heads)
        self.ffn = ConvMlp(width, 4 * width)
        self.seg = nn.Conv2d(width, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        B, C, height, width = x.shape
        x = self.attn(self.norm1(x.flatten(2).transpose(1, 2)))
        x = x + self.ffn(self.norm2(x), height, width)
        return self.seg(x.transpose(1, 2).reshape(B, C, height, width))


class MixerBlock(nn.Module):
    def __init__(self, tokens: int, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.tokens = Mlp(tokens, 24)
        self.channels = Mlp(width, 48)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.tokens(self.norm1(x).transpose(1, 2)).transpose(1, 2)
        return x + self.channels(self.norm2(x))


class MlpMixer(nn.Module):
    """MLP-Mixer: one MLP over tokens, one over channels."""

    def __init__(self, width: int = 32, depth: int = 2) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, width, 8, 8)
        self.blocks = nn.Sequential(*[MixerBlock(16, width) for _ in range(depth)])
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x).flatten(2).transpose(1, 2)
        return self.head(self.norm(self.blocks(x)).mean(1))


class ConvNeXtBlock(nn.Module):
    """ConvNeXt's block with 1x1 convolutions and a norm over channels at every pixel."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.dwconv = nn.Conv2d(width, width, 7, padding=3, groups=width)
        self.norm = nn.GroupNorm(1, width)
        self.pwconv1 = nn.Conv2d(width, 4 * width, 1)
        self.pwconv2 = nn.Conv2d(4 * width, width, 1)
        self.gamma = nn.Parameter(torch.full((width, 1, 1), 0.1))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.gamma * self.pwconv2(F.gelu(self.pwconv1(self.norm(self.dwconv(x)))))


class ConvNeXt(nn.Module):
    """Two ConvNeXt blocks."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 4, 4)
        self.blocks = nn.Sequential(ConvNeXtBlock(width), ConvNeXtBlock(width))
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))


class RotaryAttention(nn.Module):
    """Attention with rotary positions as products of complex numbers, the way Llama came out."""

    def __init__(self, width: int, heads: int, tokens: int) -> None:
        super().__init__()
        self.n_heads, self.head_dim = heads, width // heads
        self.wq, self.wk = nn.Linear(width, width, bias=False), nn.Linear(width, width, bias=False)
        self.wv, self.wo = nn.Linear(width, width, bias=False), nn.Linear(width, width, bias=False)
        angles = torch.outer(torch.arange(tokens), 0.1 ** torch.arange(self.head_dim // 2))
        turns = torch.polar(torch.ones_like(angles), angles)
        self.register_buffer("turns", torch.view_as_real(turns), persistent=False)

    def turned(self, x: Tensor) -> Tensor:
        pairs = torch.view_as_complex(x.reshape(*x.shape[:-1], -1, 2))  # (B, N, heads, d / 2)
        turns = torch.view_as_complex(self.turns)[:, None]
        return torch.view_as_real(pairs * turns).flatten(3).type_as(x)

    def forward(self, x: Tensor) -> Tensor:
        B, N, _ = x.shape
        q, k, v = (
            layer(x).view(B, N, self.n_heads, self.head_dim)
            for layer in (self.wq, self.wk, self.wv)
        )
        q, k, v = (y.transpose(1, 2) for y in (self.turned(q), self.turned(k), v))
        x = F.scaled_dot_product_attention(q, k, v)
        return self.wo(x.transpose(1, 2).reshape(B, N, -1))


class SwiGlu(nn.Module):
    """A hidden layer of two factors."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.w1, self.w3 = nn.Linear(width, hidden), nn.Linear(width, hidden)
        self.w2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.w2(F.silu(self.w1(x)) * self.w3(x))


class RotaryEncoder(nn.Module):
    """One block of an encoder with rotary positions and SwiGLU."""

    def __init__(self, width: int = 32, heads: int = 4, tokens: int = 10) -> None:
        super().__init__()
        self.embed = nn.Embedding(64, width)
        self.norm1, self.norm2 = nn.RMSNorm(width), nn.RMSNorm(width)
        self.attention = RotaryAttention(width, heads, tokens)
        self.mlp = SwiGlu(width, 2 * width)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))
