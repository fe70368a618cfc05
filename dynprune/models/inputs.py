"""Make the example call of a model: pictures, token ids or sound features of the right shape.

An image model is called with one positional tensor, the way everyone calls it. Other models of
the transformers library get keywords, since the order of their arguments differs.
"""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dynprune.errors import UsageError
from dynprune.example import Example

__all__ = ["example_of"]

_TOKENS = 16
_IMAGE_SIDE = 224


def example_of(model: nn.Module, shape: Sequence[int] | None = None, *, seed: int = 0) -> Example:
    """Make one call that ``model`` understands.

    Pictures are standard normal noise, token ids are drawn from the vocabulary, and an attention
    mask of ones goes with them. Without a shape, the model's own configuration tells it; a model
    that is not of the transformers library may carry ``example_input_array``, as Lightning's do,
    and otherwise takes 224x224 pictures.

    Args:
        model: the model to call.
        shape: ``(B, 3, H, W)`` pictures or ``(B, tokens)`` token ids.
        seed: of the noise.

    Raises:
        UsageError: if the shape is not one that the model takes.
    """
    generator = torch.Generator().manual_seed(seed)
    config = getattr(model, "config", None)
    wanted = getattr(model, "main_input_name", None)
    if config is None or not isinstance(wanted, str):
        return _plain_example(model, shape, generator)
    if wanted == "pixel_values" or (shape is not None and len(shape) == 4):
        size = tuple(shape) if shape is not None else _picture_shape(config)
        if len(size) != 4:
            raise UsageError(
                f"input shape {list(size)} for {type(model).__name__}, which takes pictures; "
                "give [B, channels, H, W]"
            )
        pictures = torch.randn(size, generator=generator)
        return _call(model, {"pixel_values": pictures})
    if wanted == "input_ids":
        return _call(model, _token_arguments(model, config, shape, generator))
    if wanted == "input_features":
        text = _decoder_ids(config, 1, generator)
        bins, frames = config.num_mel_bins, 2 * config.max_source_positions
        sound = torch.randn((1, bins, frames), generator=generator)
        return Example((), {"input_features": sound, **text})
    raise UsageError(
        f"{type(model).__name__} takes {wanted!r}, and no example of that is known; wrap it in a "
        "module:factory whose model takes pictures, or set its example_input_array"
    )


def _plain_example(
    model: nn.Module, shape: Sequence[int] | None, generator: torch.Generator
) -> Example:
    given = getattr(model, "example_input_array", None)
    if shape is None and isinstance(given, Tensor):
        return Example((given,))
    if shape is None and isinstance(given, Mapping):
        return Example((), dict(given))
    if shape is None and isinstance(given, tuple):
        return Example(given)
    size = tuple(shape) if shape is not None else (1, 3, _IMAGE_SIDE, _IMAGE_SIDE)
    return Example((torch.randn(size, generator=generator),))


def _picture_shape(config: Any) -> tuple[int, ...]:
    side = getattr(config, "image_size", None) or _IMAGE_SIDE
    height, width = side if isinstance(side, (list, tuple)) else (side, side)
    return (1, getattr(config, "num_channels", 3), height, width)


def _token_arguments(
    model: nn.Module, config: Any, shape: Sequence[int] | None, generator: torch.Generator
) -> dict[str, Tensor]:
    size = tuple(shape) if shape is not None else (1, _TOKENS)
    if len(size) != 2:
        raise UsageError(
            f"input shape {list(size)} for {type(model).__name__}, which takes token ids; "
            "give [B, tokens]"
        )
    ids = torch.randint(0, _vocabulary(config), size, generator=generator)
    arguments = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if getattr(config, "is_encoder_decoder", False):
        arguments |= _decoder_ids(config, size[0], generator)
    if hasattr(config, "vision_config") and "pixel_values" in _parameters(model):
        picture = (size[0], *_picture_shape(config.vision_config)[1:])
        arguments["pixel_values"] = torch.randn(picture, generator=generator)
    return arguments


def _decoder_ids(config: Any, batch: int, generator: torch.Generator) -> dict[str, Tensor]:
    ids = torch.randint(0, _vocabulary(config), (batch, _TOKENS), generator=generator)
    return {"decoder_input_ids": ids}


def _vocabulary(config: Any) -> int:
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    return int(text.vocab_size)


def _call(model: nn.Module, arguments: dict[str, Tensor]) -> Example:
    """Pass a single argument by position where it is the model's first, else by name."""
    first = next(iter(_parameters(model)))
    if list(arguments) == [first]:
        return Example((arguments[first],))
    return Example((), arguments)


def _parameters(model: nn.Module) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(model.forward).parameters
