"""Swap concatenating heads for folded ones and back: find, prove, then change."""

import copy
import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from dynprune.example import Example
from dynprune.host.hooks import hand_over, hooked_within, without_hooks
from dynprune.host.modes import at_inference
from dynprune.host.replacing import replace_everywhere
from dynprune.rewrite.decoder.folded import FoldedDecoder, pointwise_weight
from dynprune.rewrite.decoder.match import NotFoldableError, match_decoder
from dynprune.rewrite.decoder.structure import DecoderStructure
from dynprune.rewrite.decoder.unfold import unfold
from dynprune.rewrite.made import count_made, note_undo, take_back
from dynprune.rewrite.proof import TOLERANCE, largest_error, outputs_of, relative_error
from dynprune.rewrite.record import Rewrite

__all__ = ["FOLD_DECODER", "fold_decoders", "refold"]

logger = logging.getLogger(__name__)

FOLD_DECODER = "fold-decoder"


@dataclass
class _Call:
    """The call of one module in a run of the model."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    count: int = 1
    returns_tensor: bool = False

    @property
    def maps(self) -> int:
        leaves = pytree.tree_leaves((self.args, self.kwargs))
        return sum(isinstance(leaf, Tensor) and leaf.dim() == 4 for leaf in leaves)


def refold(model: nn.Module, record: Rewrite) -> Callable[[], None]:
    """Check that a record fits the model, and give the function that folds its head in place.

    Raises:
        AttributeError, KeyError, TypeError, ValueError: it does not fit.
    """
    source = model.get_submodule(record.module)
    structure = DecoderStructure.from_json(record.details)
    _check_fits(source, structure)
    return lambda: _swap(model, source, structure)


def _swap(model: nn.Module, head: nn.Module, structure: DecoderStructure) -> None:
    """Put the folded form in a head's place, in place."""
    trains = [(parameter, parameter.requires_grad) for parameter in head.parameters()]
    try:
        folded = FoldedDecoder(head, structure)  # freezes a part of the head
    except BaseException:
        _give_flags(trains)
        raise
    hand_over(head, folded)
    note_undo(model, partial(_unfold, folded, trains))
    replace_everywhere(model, {head: folded})


def _unfold(
    folded: FoldedDecoder, trains: list[tuple[nn.Parameter, bool]], model: nn.Module
) -> None:
    """Give a folded head its published form back, in place."""
    known = {id(parameter): flag for parameter, flag in trains}
    fuse = folded.source.get_submodule(folded.structure.fuse)
    head = unfold(folded)
    frozen = [p for module in folded.frozen_modules() for p in module.parameters()]
    first = next(fuse.parameters())
    if first.requires_grad == known[id(first)]:  # the fold still learns, or not, as its source did
        _give_flags([(p, known[id(p)]) for p in frozen if id(p) in known])
    replace_everywhere(model, {folded: head})
    hand_over(folded, head)


def _give_flags(trains: list[tuple[nn.Parameter, bool]]) -> None:
    for parameter, flag in trains:
        parameter.requires_grad_(flag)


def fold_decoders(model: nn.Module, example: Example) -> list[Rewrite]:
    """Fold every head that can be folded, in place."""
    with at_inference(model) as kept:
        calls = _capture(model, example)
        kept.put_back()
        before = outputs_of(example.run(model))
    made = count_made(model)
    records: list[Rewrite] = []
    folded: list[str] = []
    # The innermost head first: what holds a folded head is not looked at.
    for name, call in sorted(calls.items(), key=lambda item: -item[0].count(".")):
        if any(other.startswith(f"{name}.") for other in folded):
            continue
        record = _fold(model, name, call)
        records.append(record)
        if record.reason is None:
            folded.append(name)
    if folded:
        with at_inference(model):
            after = outputs_of(example.run(model))
        error = max(relative_error(a, b) for a, b in zip(after, before, strict=True))
        if not error <= 10 * TOLERANCE:  # the layers behind a head may amplify its rounding
            take_back(model, made)
            reason = f"the model's output moved by {error:.1e}"
            return [Rewrite(r.name, r.module, {}, r.max_error, r.reason or reason) for r in records]
    if not records:
        reason = "no module turns several maps (B, C, H, W) into one tensor"
        records.append(Rewrite(FOLD_DECODER, "", {}, None, reason))
    return records


def _fold(model: nn.Module, name: str, call: _Call) -> Rewrite:
    """Fold one head in place if its structure allows it and the proof holds."""
    head = model.get_submodule(name)
    error: float | None = None
    try:
        if call.count > 1:
            raise NotFoldableError(f"it runs {call.count} times in one call of the model")
        if (inner := hooked_within(head)) is not None:
            raise NotFoldableError(f"hooks are registered on its {inner}, which may not run then")
        with at_inference(head):
            program = torch.export.export(head, call.args, call.kwargs, strict=False)
        structure = match_decoder(head, program)
        _check_unshared(model, head, structure)
        source = without_hooks(copy.deepcopy(head))
        candidate = FoldedDecoder(copy.deepcopy(source), structure)
        error = largest_error(source, candidate, (call.args, call.kwargs))
        if not error <= TOLERANCE:
            raise NotFoldableError(f"the folded form differs by {error:.1e}, more than {TOLERANCE}")
    except Exception as failure:  # whatever a foreign head raises, it is left as it was
        known = isinstance(failure, NotFoldableError)
        reason = str(failure) if known else f"{type(failure).__name__}: {failure}".split("\n")[0]
        logger.info("fold-decoder leaves %s as it is: %s", name, reason)
        return Rewrite(FOLD_DECODER, name, {}, error, reason)
    _swap(model, head, structure)
    return Rewrite(FOLD_DECODER, name, structure.to_json(), error)


def _capture(model: nn.Module, example: Example) -> dict[str, _Call]:
    """Run the model and record every module that turns several maps into one tensor."""
    calls: dict[str, _Call] = {}

    def before(name: str) -> Callable[..., None]:
        def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if name in calls:
                calls[name].count += 1
            else:
                call = _Call(args, kwargs)
                if call.maps > 1:
                    calls[name] = _Call(*pytree.tree_map_only(Tensor, torch.clone, (args, kwargs)))

        return hook

    def after(name: str) -> Callable[..., None]:
        def hook(_module: nn.Module, _args: Any, output: Any) -> None:
            if name in calls:
                calls[name].returns_tensor = isinstance(output, Tensor)

        return hook

    handles = []
    for name, module in model.named_modules():
        if name and not isinstance(module, FoldedDecoder) and next(module.children(), None):
            handles.append(module.register_forward_pre_hook(before(name), with_kwargs=True))
            handles.append(module.register_forward_hook(after(name)))
    try:
        example.run(model)
    finally:
        for handle in handles:
            handle.remove()
    return {name: call for name, call in calls.items() if call.returns_tensor}


def _check_unshared(model: nn.Module, head: nn.Module, structure: DecoderStructure) -> None:
    """Refuse a head whose folded weights are used elsewhere as well."""
    names = [*(branch.projection for branch in structure.branches), structure.fuse]
    counts: dict[int, int] = {}
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            counts[id(parameter)] = counts.get(id(parameter), 0) + 1
    for name in names:
        for parameter in head.get_submodule(name).parameters(recurse=False):
            if counts[id(parameter)] > 1:
                raise NotFoldableError(f"{name} shares its weight with another module")


def _check_fits(source: nn.Module, structure: DecoderStructure) -> None:
    """Raise unless every part of the structure is in the source."""
    fuse = source.get_submodule(structure.fuse)
    width = sum(stop - start for start, stop in (b.columns for b in structure.branches))
    found = pointwise_weight(fuse).shape[1]
    if width != found:
        raise ValueError(f"{structure.fuse} reads {found} channels, not {width}")
    for name in [
        *(branch.projection for branch in structure.branches),
        *(step.module for step in structure.tail if step.module),
        *([structure.norm] if structure.norm else []),
    ]:
        source.get_submodule(name)
