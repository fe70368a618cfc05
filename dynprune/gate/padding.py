"""Which tokens of a call are padding, read from the masks that its modules receive."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

__all__ = ["Masks", "PaddingMask", "masks_of", "real_tokens"]

_HIDDEN = -1e3  # an additive mask of attention is 0 where a token counts, and far below otherwise

_OTHERS = ("encoder_", "cross_", "memory_", "context_")
"""How the names of masks begin that say something of the tokens of another part of the model."""

_SOURCES = frozenset(
    ("encoder_hidden_states", "key_value_states", "memory", "context", "key", "value")
)
"""Arguments that hold the tokens of another part of the model, which attention reads."""

_PAIRS = ("attn_mask", "src_mask", "tgt_mask", "memory_mask", "causal_mask")
"""How the names of masks end that, with two axes, say which token sees which: (T, T)."""


@dataclass(frozen=True, eq=False)
class PaddingMask:
    """An argument of a call that may say which tokens are padding.

    Attributes:
        name: of the parameter.
        tensor: its value.
    """

    name: str
    tensor: Tensor


@dataclass(frozen=True, eq=False)
class Masks:
    """The masks that a module received, by the tokens that they are about.

    Attributes:
        own: about the tokens that pass through the module.
        others: about those of another part of the model that it reads.
        sources: the tokens of that part.
        shape: first two axes of the module's own tokens, or None where unknown.
        closed: whether the module takes masks of both kinds and got none of its own tokens, so
            that no mask of the modules around it is about these.
    """

    own: tuple[PaddingMask, ...] = ()
    others: tuple[PaddingMask, ...] = ()
    sources: tuple[Tensor, ...] = ()
    shape: torch.Size | None = None
    closed: bool = False

    def about(self, tokens: Tensor) -> tuple[PaddingMask, ...]:
        """Return the masks that speak of these tokens."""
        return self.others if self.come_from_others(tokens) else self.own

    def end(self, tokens: Tensor) -> bool:
        """Return whether no module around this one has a mask that speaks of these tokens."""
        return self.closed and not self.come_from_others(tokens)

    def come_from_others(self, tokens: Tensor) -> bool:
        """Return whether tokens are those of the other part of the model."""
        if any(tokens is source for source in self.sources):
            return True
        alike = [source for source in self.sources if source.shape[:2] == tokens.shape[:2]]
        return bool(alike) and tokens.shape[:2] != self.shape


class Parameters:
    """The parameters of a module, by what they say of padding.

    Args:
        names: in order.
        padding_alone: count masks alone whose names say that they mark padding; torch's own
            modules have others of the same shape.

    Attributes:
        both: whether masks of the module's own tokens and of another part's are among them.
        known: the names.
        read: place, name and kind of those that say something; not that of a decoder where there
            is one of an encoder, too: the decoder gets its own, and no other part is meant by it.
    """

    def __init__(self, names: tuple[str, ...], *, padding_alone: bool) -> None:
        self.names, self.padding_alone = names, padding_alone
        kinds = {name: _kind(name, padding_alone) for name in names}
        pairs = {f"decoder_{name}" for name in names}
        pairs |= {name.replace("src_", "tgt_", 1) for name in names if "src_" in name}
        self.both = {"own", "other"} <= set(kinds.values())
        self.known = frozenset(names)
        self.read = tuple(
            (place, name, kind)
            for place, (name, kind) in enumerate(kinds.items())
            if kind is not None and name not in pairs
        )


def masks_of(args: tuple[Any, ...], kwargs: Mapping[str, Any], parameters: Parameters) -> Masks:
    """Return the masks among the arguments of a call."""
    own: list[PaddingMask] = []
    others: list[PaddingMask] = []
    sources: list[Tensor] = []
    empty = parameters.both  # nothing says which of the module's own tokens are padding
    count = len(args)
    given: list[tuple[str, str | None, Any]] = [
        (name, kind, args[place] if place < count else kwargs.get(name))
        for place, name, kind in parameters.read
    ]
    for name, value in kwargs.items():
        if "mask" in name and name not in parameters.known:
            given.append((name, _kind(name, parameters.padding_alone), value))
    for name, kind, value in given:
        if kind == "own" and value is not None:
            empty = False
        if not isinstance(value, Tensor):
            continue
        if kind == "own":
            own.append(PaddingMask(name, value))
        elif kind == "other":
            others.append(PaddingMask(name, value))
        elif kind == "source":
            sources.append(value)
    shape = None
    if sources:
        tensors = (v for v in (*args, *kwargs.values()) if isinstance(v, Tensor) and v.dim() > 1)
        first = next(tensors, None)
        sources = [source for source in sources if source is not first]
        shape = None if first is None else first.shape[:2]
    if sources and not parameters.both:  # attention that reads another part: its mask is of that
        own, others = [], [*own, *others]
    if not (own or others or sources or empty):
        return _NONE
    return Masks(tuple(own), tuple(others), tuple(sources), shape, empty)


_NONE = Masks()


def _kind(name: str, padding_alone: bool) -> str | None:
    """Return what an argument is by its name: an ``own`` mask, an ``other`` one, a ``source``."""
    if name in _SOURCES:
        return "source"
    if ("padding_mask" if padding_alone else "mask") not in name or "masked" in name:
        return None
    return "other" if name.startswith(_OTHERS) else "own"


def real_tokens(mask: PaddingMask) -> Tensor | None:
    """Read a mask as (B, T), true at tokens that are no padding; None for masks of other kinds.

    In transformers a mask marks the tokens that count, with ones or, where it is added to the
    scores of attention, with zeros; there it is (B, 1, 1, T) or (B, 1, queries, T), and a token
    counts where any query sees it. In torch's own modules a padding mask marks, or shifts by minus
    infinity, the tokens that do not count.
    """
    tensor = mask.tensor
    if "padding_mask" in mask.name:
        return tensor == 0 if tensor.dim() == 2 else None
    if tensor.dim() == 2:
        if mask.name.endswith(_PAIRS):
            return None
        if not tensor.is_floating_point():
            return tensor != 0
        # Ones and zeros where there is a one, else zeros and large negative numbers.
        return torch.where((tensor > 0).any(), tensor > 0, tensor > _HIDDEN)
    if tensor.dim() == 4 or (tensor.dim() == 3 and mask.name.endswith("attention_mask")):
        if not tensor.is_floating_point():
            return (tensor != 0).flatten(1, -2).any(1)
        # Ones and zeros, as some models multiply by; else numbers that are added to scores.
        binary = ((tensor == 0) | (tensor == 1)).all() & (tensor == 1).any()
        seen = torch.where(binary, tensor == 1, tensor > _HIDDEN)
        return seen.flatten(1, -2).any(1)
    return None
