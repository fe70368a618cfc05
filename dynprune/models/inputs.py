"""Make the example call of a model: pictures, token ids or sound features of the right shape.

An image model is called with one positional tensor, the way everyone calls it. Other models of
the transformers library get keywords, since the order of their arguments differs.
"""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from dynprune.errors import UsageError
from dynprune.example import Example

__all__ = ["HOW_TO_GIVE", "carried_example", "example_of"]

_TOKENS = 16
_IMAGE_SIDE = 224
_SAMPLES = 16_000
_KNOWN = ("pixel_values", "input_ids", "input_features", "input_values")
"""First inputs of transformers models of which an example can be made."""


def example_of(model: nn.Module, shape: Sequence[int] | None = None, *, seed: int = 0) -> Example:
    """Make one call that ``model`` understands.

    A model that carries ``example_input_array``, as Lightning's do, is called with it, whatever
    library it is of, unless a shape is asked for. Other pictures and sounds are standard normal
    noise, token ids are drawn from the vocabulary, and an attention mask of ones goes with them.
    Without a shape, the model's own configuration tells it; a model that has none takes 224x224
    pictures.

    Args:
        model: the model to call.
        shape: ``(B, 3, H, W)`` pictures, ``(B, tokens)`` token ids or ``(B, samples)`` sound.
        seed: of the noise.

    Raises:
        UsageError: if the shape is not one that the model takes, no example of it is known, or
            what it carries is no example.
    """
    generator = torch.Generator().manual_seed(seed)
    carried = carried_example(model)
    config = getattr(model, "config", None)
    wanted = getattr(model, "main_input_name", None)
    if carried is not None:
        fitting = carried if shape is None else _of_shape(carried, shape, generator)
        if fitting is not None:
            return fitting
        if wanted not in _KNOWN:
            raise UsageError(
                f"input shape {list(shape or ())} for {type(model).__name__}, whose "
                "example_input_array holds tensors of the shapes "
                f"{[list(tensor.shape) for tensor in carried.tensors]}; leave the shape out "
                "(--input-size, or the recipe's model.input), or set another example"
            )
    if config is None or not isinstance(wanted, str):
        size = tuple(shape) if shape is not None else (1, 3, _IMAGE_SIDE, _IMAGE_SIDE)
        return Example((torch.randn(size, generator=generator),))
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
    if wanted == "input_values":
        sound = torch.randn(_sound_shape(config, shape), generator=generator)
        return Example((), {wanted: sound})
    if wanted == "input_features" and hasattr(config, "num_mel_bins"):
        text = _decoder_ids(config, 1, generator)
        bins, frames = config.num_mel_bins, 2 * config.max_source_positions
        sound = torch.randn((1, bins, frames), generator=generator)
        return Example((), {"input_features": sound, **text})
    raise UsageError(
        f"{type(model).__name__} takes {wanted!r}, and no example of that is known. {HOW_TO_GIVE}"
    )


HOW_TO_GIVE = (
    "Name it as module:function, a function of yours that loads or builds the model, sets "
    "model.example_input_array (a tensor, a tuple of arguments, or a dict of keyword arguments; "
    "batch first) and returns it; in Python, pass the example to dynprune.inspect or apply."
)
"""What a user does whose model's input is not known."""


def carried_example(model: nn.Module) -> Example | None:
    """Return the call that a model carries as ``example_input_array``, or None.

    Raises:
        UsageError: if it carries something that is no call.
    """
    given = getattr(model, "example_input_array", None)
    if given is None:
        return None
    if isinstance(given, Example):
        example = given
    elif isinstance(given, Mapping) and all(isinstance(key, str) for key in given):
        example = Example((), dict(given))
    elif isinstance(given, (tuple, list)):
        example = Example(tuple(given))
    else:
        example = Example((given,))
    if not example.tensors:
        raise UsageError(
            f"the example_input_array of {type(model).__name__} is {type(given).__name__} and "
            "holds no tensor; set it to a tensor, a tuple of arguments, or a dict of keyword "
            "arguments, batch first"
        )
    return example


def _of_shape(carried: Example, shape: Sequence[int], generator: torch.Generator) -> Example | None:
    """Make a carried call anew with its first tensor in another shape; None where it cannot be.

    Another number of instances is always possible; another size is where the call is of one
    tensor of noise.
    """
    first, size = carried.tensors[0], tuple(shape)
    if tuple(first.shape) == size:
        return carried
    if len(carried.tensors) == 1 and first.is_floating_point() and first.dim() == len(size):
        noise = torch.randn(size, generator=generator).to(first)
        return Example(
            *pytree.tree_map_only(Tensor, lambda _: noise, (carried.args, dict(carried.kwargs)))
        )
    if first.shape[1:] == size[1:]:
        return carried.batched(size[0])
    return None


def _sound_shape(config: Any, shape: Sequence[int] | None) -> tuple[int, ...]:
    """Return the shape of a second of sound, or of the spectrogram that a model takes."""
    if shape is not None:
        return tuple(shape)
    bins, frames = getattr(config, "num_mel_bins", None), getattr(config, "max_length", None)
    return (1, frames, bins) if bins and frames else (1, _SAMPLES)


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
