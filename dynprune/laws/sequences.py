"""Laws of sequences: padding has no part in an answer, nor have later tokens where none may."""

from collections.abc import Iterator, Sequence
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor

from dynprune.example import Example
from dynprune.laws.calls import Later, Padding, by_position, changed_later, named_tensors, paddings
from dynprune.laws.equality import values_are_trained
from dynprune.laws.judge import differences
from dynprune.laws.subject import Case, NotTriedError, Subject

__all__ = ["by_steps", "generated", "later_tokens", "mask_types", "padded_rows"]

NEW_TOKENS = 4  # that are generated
UNREACHED = 1e-6  # change over the largest magnitude that is rounding
STEPS = 3  # tokens that are decoded one at a time


def padded_rows(subject: Subject) -> Iterator[Case]:
    """A padded row gets the answer of the row alone, by whichever argument padding is told."""
    forms = list(paddings(subject.dense, subject.batch))
    if not forms:
        raise NotTriedError("the model takes no mask of padding, or the input has no sequence")
    for form in forms:
        yield _padded(subject, form, form.padded, form.label)
        placed = by_position(subject.dense, form.padded)
        if placed is not None:
            yield _padded(subject, form, placed, f"{form.label}, by position")


def _padded(subject: Subject, form: Padding, call: Example, label: str) -> Case:
    @cache
    def pairs() -> tuple[list[Tensor], list[Tensor]]:
        alone, padded = subject.run(form.alone), subject.run(call)
        return real_part(padded, alone, left=form.left), alone

    return Case(label, lambda: pairs()[0], lambda: pairs()[1])


def real_part(padded: Sequence[Tensor], alone: Sequence[Tensor], *, left: bool) -> list[Tensor]:
    """Return what the second of two rows has where the row alone has anything."""
    found = []
    for tensor, like in zip(padded, alone, strict=True):
        part = tensor[1:2] if tensor.dim() and tensor.shape[0] == 2 * like.shape[0] else tensor
        for axis in range(1, min(part.dim(), like.dim())):
            more = part.shape[axis] - like.shape[axis]
            if more > 0:
                part = part.narrow(axis, more if left else 0, like.shape[axis])
        found.append(part)
    return found


def mask_types(subject: Subject) -> Iterator[Case]:
    """A mask of another type, and no mask in place of one that hides nothing, change nothing."""
    forms = [form for form in paddings(subject.dense, subject.batch) if not form.left]
    if not forms:
        raise NotTriedError("the model takes no mask of padding, or the input has no sequence")
    for form in forms:
        name = form.label.removeprefix("padded on the right by ")
        mask = dict(named_tensors(form.padded)).get(name)
        if mask is None or name not in form.padded.kwargs:
            continue
        for dtype in (torch.bool, torch.int32, torch.float32):
            if dtype == mask.dtype:
                continue
            other = Example(form.padded.args, {**form.padded.kwargs, name: mask.to(dtype)})
            label = f"{name} of {str(dtype).removeprefix('torch.')}"
            yield _real_alone(subject, form, other, label)
        kwargs = {key: value for key, value in form.alone.kwargs.items() if key != name}
        yield Case(
            f"no {name}",
            partial(subject.run, Example(form.alone.args, kwargs)),
            partial(subject.run, form.alone),
        )


def _real_alone(subject: Subject, form: Padding, call: Example, label: str) -> Case:
    """Return the case that two calls of the same padding agree where there is none."""

    def part(of: Example) -> list[Tensor]:
        return real_part(subject.run(of), subject.run(form.alone), left=False)

    return Case(label, partial(part, call), partial(part, form.padded))


def later_tokens(subject: Subject) -> Iterator[Case]:
    """Later tokens change no earlier output, wherever they do not in the dense model.

    A model in which no token ever reaches another is not held to it: a gate that chooses for a
    whole input looks at all of its tokens.
    """
    tried = False
    for cached in (None, True, False):
        call = subject.batch
        if cached is not None:
            call = Example(call.args, {**call.kwargs, "use_cache": cached})
        for change in changed_later(call):
            label = f"{change.name} from token {change.kept + 1} on"
            label += "" if cached is None else f", use_cache={cached}"
            tried = True
            yield Case(
                label,
                partial(_earlier, subject, change.later, change),
                partial(_earlier_of_mixing, subject, call, change),
            )
    if not tried:
        raise NotTriedError("the input has no sequence")


def _earlier(subject: Subject, call: Example, change: Later) -> list[Tensor]:
    return _tokens(subject.run(call), change.length, slice(0, change.kept))


def _earlier_of_mixing(subject: Subject, call: Example, change: Later) -> list[Tensor]:
    """Return the earlier outputs, where earlier tokens reach later ones in the dense model."""
    after = slice(change.kept, None)
    plain = _tokens(subject.run(call, subject.dense), change.length, after)
    reached = _tokens(subject.run(change.earlier, subject.dense), change.length, after)
    if all(error < UNREACHED for error in differences(reached, plain)):
        raise NotTriedError("no token reaches another one in the dense model")
    return _earlier(subject, call, change)


def _tokens(outputs: Sequence[Tensor], length: int, tokens: slice) -> list[Tensor]:
    """Return these tokens of every output (B, T, ...) of this length."""
    found = [t[:, tokens] for t in outputs if t.dim() >= 2 and t.shape[1] == length]
    if not found:
        raise NotTriedError("no output has a value for every token")
    return found


def by_steps(subject: Subject) -> Iterator[Case]:
    """Decoding with a cache, token by token, gives what the whole sequence gives at once."""
    name, ids = next(
        ((n, t) for n, t in named_tensors(subject.batch) if n == "input_ids" and t.dim() == 2),
        ("", None),
    )
    others = [n for n, _ in named_tensors(subject.batch) if n != name and "mask" not in n]
    if ids is None or others or ids.shape[1] <= STEPS:
        raise NotTriedError("the model is not called with token ids alone")
    tokens = ids

    def whole() -> list[Tensor]:
        output = _raw(subject, {"input_ids": tokens, "use_cache": True})
        return [_scores(output)[:, -STEPS:]]

    def steps() -> list[Tensor]:
        first = tokens[:, :-STEPS]
        output = _raw(subject, {"input_ids": first, "use_cache": True})
        made = []
        for step in range(STEPS):
            now = tokens[:, first.shape[1] + step][:, None]
            past = getattr(output, "past_key_values", None)
            if past is None:
                raise NotTriedError("the model keeps no cache")
            output = _raw(subject, {"input_ids": now, "past_key_values": past, "use_cache": True})
            made.append(_scores(output))
        return [torch.cat(made, dim=1)]

    yield Case("token by token", steps, whole)


def _raw(subject: Subject, kwargs: dict[str, Any]) -> Any:
    with torch.no_grad():
        return subject.model(**kwargs)


def _scores(output: Any) -> Tensor:
    """Return what a decoder gives for every token."""
    for name in ("logits", "last_hidden_state"):
        found = getattr(output, name, None)
        if isinstance(found, Tensor):
            return found
    raise NotTriedError("the model returns neither logits nor hidden states by name")


def generated(subject: Subject) -> Iterator[Case]:
    """`generate` returns the dense model's tokens with nothing skipped, and its own every time."""
    can = getattr(subject.dense, "can_generate", None)
    if can is None or not can():
        raise NotTriedError("the model generates nothing")
    call = subject.batch
    kwargs = {k: v for k, v in call.kwargs.items() if not k.startswith("decoder_")}

    def tokens(model: Any) -> list[Tensor]:
        with torch.no_grad():
            made = model.generate(
                *call.args,
                **kwargs,
                max_new_tokens=NEW_TOKENS,
                min_new_tokens=NEW_TOKENS,
                do_sample=False,
            )
        return [made]

    def dense_function() -> list[Tensor]:
        with subject.skipping_nothing():
            return tokens(subject.model)

    def masked() -> list[Tensor]:
        with subject.masked():
            return tokens(subject.model)

    def after_another() -> list[Tensor]:
        for other in (*subject.calls, subject.batch):
            subject.run(other)
        return tokens(subject.model)

    if not values_are_trained(subject.model):
        yield Case("nothing skipped", dense_function, partial(tokens, subject.dense))
    yield Case("compact", partial(tokens, subject.model), masked)
    yield Case("after another call", after_another, partial(tokens, subject.model))
