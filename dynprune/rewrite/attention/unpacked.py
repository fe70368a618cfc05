"""Multi-head attention with a linear layer each for queries, keys and values."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dynprune.errors import UsageError
from dynprune.host.fused_paths import ClosedPath

__all__ = ["UnpackedAttention"]


class UnpackedAttention(nn.Module):
    r"""Compute what an `nn.MultiheadAttention` computes, with its packed projection taken apart.

    .. math::
        Y = \mathrm{concat}_h \left( \mathrm{softmax}\!\left(
        \frac{Q_h K_h^T}{\sqrt{d}} + M \right) V_h \right) W_O^T

    The scale stays that of the full head width d, and the code asks the tensors for the width of a
    head, so heads may be narrow and those of V narrower than those of Q and K.

    Args:
        source: whose weights are copied; it is kept for the way back.

    Shape:
        as in `nn.MultiheadAttention`: (B, N, E) or, without ``batch_first``, (N, B, E); (N, E)
        unbatched.

    Attributes:
        q_proj: makes the queries; ``k_proj`` and ``v_proj`` likewise.
        out_proj: the source's own.
        closed: fused paths around it that were closed, so that it is run at all.

    Source: Attention Is All You Need, arXiv 1706.03762, Eq. 1.
    """

    def __init__(self, source: nn.MultiheadAttention) -> None:
        super().__init__()
        self.embed_dim = self.kdim = self.vdim = source.embed_dim
        self.num_heads, self.head_dim = source.num_heads, source.head_dim
        self.dropout, self.batch_first = source.dropout, source.batch_first
        self.scaling = source.head_dim**-0.5
        # What modules around an nn.MultiheadAttention may ask of it:
        self._qkv_same_embed_dim, self.add_zero_attn = True, False
        self.bias_k = self.bias_v = None
        weights = source.in_proj_weight.detach().chunk(3)
        bias = source.in_proj_bias
        biases = [None] * 3 if bias is None else bias.detach().chunk(3)
        trains = tuple(p is not None and p.requires_grad for p in (source.in_proj_weight, bias))
        self.q_proj, self.k_proj, self.v_proj = (
            _linear(w, b, trains) for w, b in zip(weights, biases, strict=True)
        )
        self.out_proj = source.out_proj
        self.closed: tuple[ClosedPath, ...] = ()
        self._source = (source,)  # a tuple: its parameters are not this module's
        self.train(source.training)

    def release(self) -> None:
        """Leave the source without its packed weight, in place: it is here, in three parts."""
        for packed in (self._source[0].in_proj_weight, self._source[0].in_proj_bias):
            if packed is not None:
                packed.data = packed.data.new_empty(0)

    @torch.no_grad()
    def to_packed(self) -> nn.MultiheadAttention:
        """Return the source back, with the weights that this module has now."""
        (source,) = self._source
        source.in_proj_weight.data = self.in_proj_weight
        source.in_proj_weight.requires_grad_(self.q_proj.weight.requires_grad)
        if source.in_proj_bias is not None and self.q_proj.bias is not None:
            assert self.in_proj_bias is not None
            source.in_proj_bias.data = self.in_proj_bias
            source.in_proj_bias.requires_grad_(self.q_proj.bias.requires_grad)
        source.out_proj = self.out_proj
        return source.train(self.training)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Attend; arguments and results are those of `nn.MultiheadAttention`.

        Raises:
            UsageError: a mask has a wrong shape or type, or ``is_causal`` comes without a mask.
        """
        if is_causal and attn_mask is None:
            raise UsageError("is_causal=True needs attn_mask, as in nn.MultiheadAttention")
        single, transposed = query.dim() == 2, query.dim() == 3 and not self.batch_first
        tokens = [x[None] if single else x for x in (query, key, value)]
        tokens = [x.transpose(0, 1) if transposed else x for x in tokens]  # each (B, N, E)
        q, k, v = (
            self._heads(layer(x))
            for layer, x in zip((self.q_proj, self.k_proj, self.v_proj), tokens, strict=True)
        )  # each (B, H, N, D)
        hinted = is_causal and key_padding_mask is None and not need_weights
        mask = _merged(None if hinted else attn_mask, key_padding_mask, q, k, query.dtype)
        weights: Tensor | None = None
        if need_weights:
            scores = (q * self.scaling) @ k.transpose(-2, -1)  # (B, H, N, S)
            weights = F.softmax(scores if mask is None else scores + mask, dim=-1)
            weights = F.dropout(weights, self.dropout, self.training)
            y = weights @ v
            weights = weights.mean(1) if average_attn_weights else weights
        else:
            dropout = self.dropout if self.training else 0.0
            y = F.scaled_dot_product_attention(
                q, k, v, mask, dropout, is_causal=hinted, scale=self.scaling
            )
        y = self.out_proj(y.transpose(1, 2).flatten(2))  # (B, N, E)
        if single:
            return y[0], None if weights is None else weights[0]
        return (y.transpose(0, 1).contiguous() if transposed else y), weights

    def _heads(self, x: Tensor) -> Tensor:
        """View (B, N, H * D) as (B, H, N, D), for whatever D is."""
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)

    @property
    def in_proj_weight(self) -> Tensor:
        """The packed weight (3 E, E), a copy."""
        return torch.cat([self.q_proj.weight, self.k_proj.weight, self.v_proj.weight])

    @property
    def in_proj_bias(self) -> Tensor | None:
        """The packed bias (3 E,), a copy, or None."""
        biases: list[Tensor] = [
            b for b in (self.q_proj.bias, self.k_proj.bias, self.v_proj.bias) if b is not None
        ]
        return torch.cat(biases) if biases else None

    def extra_repr(self) -> str:
        """Show the sizes."""
        return f"{self.embed_dim}, num_heads={self.num_heads}, batch_first={self.batch_first}"


def _linear(weight: Tensor, bias: Tensor | None, trains: tuple[bool, ...]) -> nn.Linear:
    """Make a linear layer of copies of these."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    layer.weight = nn.Parameter(weight.clone(), requires_grad=trains[0])
    if bias is not None:
        layer.bias = nn.Parameter(bias.clone(), requires_grad=trains[1])
    return layer


def _merged(
    attn_mask: Tensor | None, padding: Tensor | None, q: Tensor, k: Tensor, dtype: torch.dtype
) -> Tensor | None:
    """Return what both masks add to the scores, so that it broadcasts to (B, H, N, S)."""
    batch, heads, tokens, span = *q.shape[:3], k.shape[2]
    shift = None
    if attn_mask is not None:
        right = (tokens, span), (batch * heads, tokens, span)
        if attn_mask.shape not in right:
            found = tuple(attn_mask.shape)
            raise UsageError(f"attn_mask has shape {found}; it must be {right[0]} or {right[1]}")
        mask = _additive(attn_mask, dtype)
        shift = mask[None, None] if mask.dim() == 2 else mask.view(batch, heads, tokens, span)
    if padding is not None:
        if padding.numel() != batch * span:
            found = tuple(padding.shape)
            raise UsageError(f"key_padding_mask has shape {found}; it must be {(batch, span)}")
        hidden = _additive(padding, dtype).view(batch, 1, 1, span)
        shift = hidden if shift is None else shift + hidden
    return shift


def _additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """Turn a boolean mask, true where nothing may be seen, into one that is added."""
    if mask.is_floating_point():
        return mask
    if mask.dtype != torch.bool:
        raise UsageError(f"a mask of attention is {mask.dtype}; it must be boolean or floating")
    return torch.zeros_like(mask, dtype=dtype).masked_fill(mask, float("-inf"))
