"""A model's logits and stage features from one forward pass, without a change to the model."""

import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from dynprune.distill.batches import Inputs
from dynprune.errors import UsageError
from dynprune.example import Example
from dynprune.host.outputs import tensors_of
from dynprune.rewrite.decoder.folded import FoldedDecoder
from dynprune.tasks.embedding import text_embedding
from dynprune.tasks.logits import logits_of

__all__ = [
    "EMBEDDING",
    "ENCODER_STAGES",
    "GROUP_OUTPUTS",
    "LOGITS",
    "OUTPUTS",
    "Observed",
    "Observer",
]

EMBEDDING = "embedding"
ENCODER_STAGES = "encoder_stages"
GROUP_OUTPUTS = "group_outputs"
LOGITS = "logits"
OUTPUTS = "outputs"
_MASK = "attention_mask"
_OF_STRUCTURE = {EMBEDDING, ENCODER_STAGES, GROUP_OUTPUTS, LOGITS, OUTPUTS}


@dataclass
class Observed:
    """What one forward pass showed.

    Attributes:
        logits: the model's, or None where nobody asked for them.
        features: by place (``encoder_stages``, ``embedding``, ``outputs``, ``group_outputs`` or a
            ``re:`` pattern) the maps found there.
    """

    logits: Tensor | None = None
    features: dict[str, list[Tensor]] = field(default_factory=dict)

    def at(self, place: str) -> list[Tensor]:
        """Return the maps at a place; at ``logits`` they are the logits alone."""
        if place == LOGITS:
            assert self.logits is not None
            return [self.logits]
        return self.features[place]


class _Reached(Exception):  # noqa: N818 - not an error: all that was asked for has been seen
    """Ends a forward pass early."""


class Observer:
    """Runs a model and shows its logits and the features at the places asked for.

    ``encoder_stages`` are the stage maps that a :class:`FoldedDecoder` reads, where the model has
    one; else the ``hidden_states`` that a transformers model returns on request. ``re:PATTERN``
    are the outputs of the modules whose full name matches, in the model's order. ``embedding`` is
    one vector a text, see :func:`~dynprune.tasks.embedding.text_embedding`. ``outputs`` are all
    floating-point tensors that the model returns. ``group_outputs`` are the outputs of the layers
    that read gated neurons, whatever they are called: what each group gives to the rest.

    Padding, where the inputs have an ``attention_mask``, is zero in every map, so that no loss
    sees it.

    Where only the maps of a folded decoder are asked for, the pass ends there: a stage that
    learns from features alone does not pay for the decoder.

    Args:
        model: of one positional argument, or of keywords; it is hooked during calls alone.
        places: ``logits``, ``encoder_stages``, ``embedding``, ``outputs``, ``group_outputs``,
            ``re:PATTERN``.
        consumers: names of the layers that read gated neurons, for ``group_outputs``.

    Raises:
        UsageError: if a pattern matches no module, or is not a pattern.

    Example:
        >>> Observer(nn.Sequential(nn.ReLU()), {"re:0"})(-torch.ones(1)).features
        {'re:0': [tensor([0.])]}
    """

    def __init__(
        self, model: nn.Module, places: Collection[str], consumers: Sequence[str] = ()
    ) -> None:
        self.model = model
        self.places = frozenset(places)
        self._decoders = [m for m in model.modules() if isinstance(m, FoldedDecoder)]
        self._patterns = {
            place: _matching(model, place) for place in sorted(self.places - _OF_STRUCTURE)
        }
        if GROUP_OUTPUTS in self.places:
            self._patterns[GROUP_OUTPUTS] = _consumers(model, consumers)
        self._stops_early = self.places == {ENCODER_STAGES} and len(self._decoders) == 1

    def __call__(self, inputs: Inputs) -> Observed:
        """Run the model on ``inputs``.

        Raises:
            UsageError: if ``encoder_stages`` are asked for and the model does not show them.
        """
        seen = Observed(features={place: [] for place in self.places - {LOGITS}})
        asks = ENCODER_STAGES in self.places and not self._decoders
        with self._hooked(seen):
            try:
                output = self._run(inputs, asks)
            except _Reached:
                return seen
        if asks:
            seen.features[ENCODER_STAGES] = _hidden_states(output, self.model)
        keywords = inputs.kwargs if isinstance(inputs, Example) else inputs
        real = keywords.get(_MASK) if isinstance(keywords, Mapping) else None
        if real is not None:
            seen.features = {
                place: [_without_padding(x, real) for x in maps]
                for place, maps in seen.features.items()
            }
        if OUTPUTS in self.places:
            seen.features[OUTPUTS] = [t for t in tensors_of(output) if t.is_floating_point()]
        if EMBEDDING in self.places:
            seen.features[EMBEDDING] = [text_embedding(output, real)]
        if LOGITS in self.places:
            seen.logits = logits_of(output)
        return seen

    def _run(self, inputs: Inputs, asks: bool) -> Any:
        if not asks:
            return self._call(inputs)
        try:
            return self._call(inputs, output_hidden_states=True)
        except TypeError as error:
            if "output_hidden_states" not in str(error):
                raise
            raise UsageError(_no_stages(self.model)) from error

    def _call(self, inputs: Inputs, **more: bool) -> Any:
        if isinstance(inputs, Example):
            return self.model(*inputs.args, **inputs.kwargs, **more)
        if isinstance(inputs, dict):
            return self.model(**inputs, **more)
        return self.model(inputs, **more)

    @contextmanager
    def _hooked(self, seen: Observed) -> Iterator[None]:
        with ExitStack() as stack:
            if ENCODER_STAGES in self.places:
                for decoder in self._decoders:
                    hook = _reads_stages(seen.features[ENCODER_STAGES], self._stops_early)
                    handle = decoder.register_forward_pre_hook(hook, with_kwargs=True)
                    stack.callback(handle.remove)
            for place, modules in self._patterns.items():
                for module in modules:
                    handle = module.register_forward_hook(_keeps(seen.features[place]))
                    stack.callback(handle.remove)
            yield


def _reads_stages(maps: list[Tensor], last: bool) -> Callable[..., None]:
    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        assert isinstance(module, FoldedDecoder)
        maps.extend(module.stage_maps(args, kwargs))
        if last:
            raise _Reached

    return hook


def _keeps(maps: list[Tensor]) -> Callable[..., None]:
    def hook(_module: nn.Module, _args: Any, output: Any) -> None:
        maps.append(output if isinstance(output, Tensor) else logits_of(output))

    return hook


def _without_padding(x: Tensor, real: Tensor) -> Tensor:
    """Set padded tokens of a map ``(B, T, C)`` to zero; other maps stay."""
    if x.dim() != 3 or x.shape[:2] != real.shape:
        return x
    return x.masked_fill(real[..., None] == 0, 0.0)


def _matching(model: nn.Module, place: str) -> list[nn.Module]:
    if not place.startswith("re:"):
        raise UsageError(
            f"features on {place!r}: write one of {', '.join(map(repr, sorted(_OF_STRUCTURE)))} or "
            "'re:PATTERN' for the modules whose full name matches"
        )
    try:
        pattern = re.compile(place[3:])
    except re.error as error:
        raise UsageError(f"features on {place!r}: not a regular expression: {error}") from error
    found = [module for name, module in model.named_modules() if name and pattern.fullmatch(name)]
    if not found:
        raise UsageError(f"features on {place!r}: no module of the model has such a name")
    return found


def _consumers(model: nn.Module, names: Sequence[str]) -> list[nn.Module]:
    known = dict(model.named_modules())
    found = [known[name] for name in names if name in known]
    if not found:
        raise UsageError(
            f"features on {GROUP_OUTPUTS!r}: no layer of the model reads gated neurons; gate it "
            "first, or name modules by 're:PATTERN'"
        )
    return found


def _hidden_states(output: Any, model: nn.Module) -> list[Tensor]:
    states = getattr(output, "hidden_states", None)
    if not states:
        raise UsageError(_no_stages(model))
    return list(states)


def _no_stages(model: nn.Module) -> str:
    return (
        f"{type(model).__name__} does not show its encoder stages: it has no folded decoder and "
        "returns no hidden_states. Name the modules instead, as in on: 're:encoder\\.stage\\d'"
    )
