"""Find out by running for which groups a gate would show earlier tokens what comes later.

A gate pools over the tokens of its group's input, so that each token is told of all of them. That
is nothing new where later tokens reach earlier ones anyway. Where they do not, in the group's own
input or in anything that comes after it, the gate would be a leak.
"""

import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from dynprune.example import Example
from dynprune.graph.influence import Order, Parts, order_in, order_of
from dynprune.graph.neurons import NeuronGroup
from dynprune.graph.observed import Changes, Seen, changes, observe, rows_of_output
from dynprune.graph.tokens import Tokens, changed, longer, sequences, special_ids, unmasked
from dynprune.host.modes import at_inference

__all__ = ["Causality", "find_causality"]

logger = logging.getLogger(__name__)

#: Ids that are tried one by one where a model refuses other ones for all of them.
MOST_IDS = 6

#: What shows that later tokens reach earlier ones.
TOGETHER: frozenset[Order] = frozenset({"whole", "mutual"})


#: Rows that changes of the first and of the last tokens reach; None where shapes changed.
_Pair = tuple[Tensor | None, Tensor | None]


@dataclass(frozen=True)
class Causality:
    """What is known of time in the layers that make each group's neurons.

    Attributes:
        causal: first producers of groups whose gate would show earlier tokens later ones.
        untried: first producer -> why that cannot be said of it.
    """

    causal: frozenset[str] = frozenset()
    untried: Mapping[str, str] = field(default_factory=dict)


def find_causality(model: nn.Module, example: Example, groups: Sequence[NeuronGroup]) -> Causality:
    """Judge the first producer of every group.

    The first and the last tokens of each input sequence are changed by turns, half of them and
    then a few. What the last ones leave alone and the first ones do not, in a layer's input, in
    any call of it, or in the outputs, stands in a causal part. Where no token reaches another at
    all, a model of ids is taken as causal, and one of numbers (features of pictures) is not.

    Args:
        model: any module; it runs in eval mode.
        example: one call of it, of which one instance runs.
        groups: the groups to judge.
    """
    names = dict.fromkeys(group.producers[0].module for group in groups)
    if not names or (not sequences(example) and longer(example) is None):
        return Causality()
    modules = dict(model.named_modules())
    with at_inference(model):
        return _Search(model, {name: modules[name] for name in names if name in modules}).run(
            example
        )


@dataclass
class _Part:
    """What changing the first and the last tokens of a sequence showed.

    Attributes:
        inputs: module -> orders of time in its input, one for each call, and one for all of them
            where each is a row; the modules in the order of running.
        outputs: orders of time in the outputs.
    """

    inputs: dict[str, list[Order]]
    outputs: list[Order]


class _Search:
    """The runs of one model, and what they showed of its layers.

    Args:
        model: in eval mode.
        watched: the layers, by name.
    """

    def __init__(self, model: nn.Module, watched: Mapping[str, nn.Module]) -> None:
        self.model = model
        self.watched = watched
        self.special = special_ids(model)
        self.causal: set[str] = set()
        self.untried: dict[str, str] = {}

    def run(self, example: Example) -> Causality:
        """Judge every layer."""
        call, base = self._first_run(example)
        found = sequences(call)
        if any(not tokens.is_picture for tokens in found) and changes(base, self._seen(call)):
            self._cannot_try(base, "the model does not answer the same call twice alike")
            return self._verdict()
        tried: set[tuple[int, ...]] = set()
        failures: list[tuple[Tokens, str]] = []
        for tokens in found:
            failure = self._try(call, base, tokens)
            if failure is None:
                tried.add(tokens.covered)
            else:
                failures.append((tokens, failure))
        for tokens, failure in failures:
            if tokens.covered not in tried:
                self._cannot_try(base, f"{tokens.name} cannot be changed: {failure}", tokens.length)
        wider = longer(call)
        if wider is not None and not any(tokens.are_ids for tokens in found):
            self._lengthened(wider, base)
        return self._verdict()

    def _verdict(self) -> Causality:
        untried = {name: why for name, why in self.untried.items() if name not in self.causal}
        return Causality(frozenset(self.causal), untried)

    def _cannot_try(self, base: Seen, why: str, length: int | None = None) -> None:
        """Note why nothing can be said of the layers that may see these tokens side by side."""
        for name, calls in base.inputs.items():
            shapes = [call.rows.shape[:-1] for call in calls]
            if any(
                length in (None, *shape, shape.numel()) for shape in shapes if shape.numel() > 1
            ):
                self.untried.setdefault(
                    name, f"whether later tokens reach earlier ones cannot be tried: {why}"
                )

    def _first_run(self, example: Example) -> tuple[Example, Seen]:
        """Run one instance without padding, or as much of the example as the model takes."""
        batch = example.batch

        def first(leaf: object) -> object:
            whole = isinstance(leaf, Tensor) and leaf.dim() and leaf.shape[0] == batch > 1
            return leaf[:1] if whole else leaf  # type: ignore[index]

        alone = Example(*pytree.tree_map(first, (example.args, dict(example.kwargs))))
        for call in (unmasked(alone), alone, unmasked(example)):
            try:
                return call, self._seen(call)
            except Exception as error:  # any model may refuse another batch, in its own words
                logger.debug("The model does not take one instance: %s", error)
        return example, self._seen(example)

    def _seen(self, example: Example) -> Seen:
        return observe(self.model, self.watched, example)

    def _lengthened(self, wider: Example, base: Seen) -> None:
        """Judge by a call with several tokens where the example has one."""
        try:
            call, seen = wider, self._seen(wider)
        except Exception as error:  # any model may take one token alone
            logger.debug("The model does not take more tokens: %s", error)
            for name, calls in base.inputs.items():
                if any(c.rows.dim() > 2 and c.rows.shape[1] == 1 for c in calls):
                    self.untried.setdefault(
                        name,
                        "whether later tokens reach earlier ones cannot be tried: "
                        "the example has one token; give a call with several",
                    )
            return
        for tokens in sequences(call):
            if tokens.axis == 1 and not tokens.is_picture:
                self._try(call, seen, tokens, lengthened=True)

    def _try(
        self, call: Example, base: Seen, tokens: Tokens, *, lengthened: bool = False
    ) -> str | None:
        """Judge by one sequence; say why where that cannot be done.

        Args:
            call: that was run.
            base: what it showed.
            tokens: the sequence.
            lengthened: whether the user's has one token, so that it need not be a sequence.
        """
        half, few = tokens.length // 2, max(1, tokens.length // 16)
        cuts = [(tokens.length - half, half)]
        if few < half and not tokens.is_picture:
            cuts.append((few, few))
        judged = []
        for first, last in cuts:
            late = self._change(call, tokens, slice(tokens.length - last, tokens.length))
            if isinstance(late, str):
                return late
            after = changes(base, late)
            if tokens.is_picture and after.reach_all_outputs:
                return None
            early = self._change(call, tokens, slice(0, first))
            if isinstance(early, str):
                return early
            parts = Parts(tokens.length, first, last, call.batch == 1, tokens.is_picture)
            judged.append(_orders(changes(base, early), after, parts))
        self._judge(base, judged, of_ids=tokens.are_ids and not lengthened)
        return None

    def _change(self, call: Example, tokens: Tokens, part: slice) -> Seen | str:
        """Run with a part of a sequence changed, or say why the model does not."""
        tries: list[int | None] = [None]
        if tokens.are_ids:
            leaf = pytree.tree_leaves((call.args, dict(call.kwargs)))[tokens.place]
            window = leaf.narrow(tokens.axis, part.start, part.stop - part.start)
            tries += window.unique().tolist()[:MOST_IDS]
        failure = "no other value for it is known"
        for place, only in enumerate(tries):
            other = changed(call, tokens, part, self.special, only)
            if other is None:
                continue
            try:
                return self._seen(other)
            except Exception as error:  # any model refuses values that it does not know
                said = (str(error).strip().splitlines() or [type(error).__name__])[0][:120]
                failure = failure if place else said
        return failure

    def _judge(self, base: Seen, parts: Sequence[_Part], *, of_ids: bool) -> None:
        """Find the layers whose gate would leak, by everything that comes with or after them."""
        names = list(base.inputs)
        for place, name in enumerate(names):
            pooled = any(call.rows[..., 0].numel() > 1 for call in base.inputs[name])
            own = [order for part in parts for order in part.inputs[name]]
            if not pooled or not {"causal", "apart", "mutual", "near"}.intersection(own):
                continue
            after: set[Order] = set()
            for part in parts:
                after.update(part.outputs, *(part.inputs[later] for later in names[place:]))
            if "causal" in after or (of_ids and not TOGETHER & after):
                self.causal.add(name)


def _orders(early: Changes, late: Changes, parts: Parts) -> _Part:
    """Say of every layer's input and of the outputs what order of time they show."""
    inputs = {
        name: _orders_of(list(zip(early.inputs[name], lasts, strict=True)), parts)
        for name, lasts in late.inputs.items()
    }
    alike: dict[torch.Size, list[_Pair]] = defaultdict(list)
    for pair in zip(early.outputs, late.outputs, strict=True):
        if pair[0] is not None and pair[1] is not None:
            rows = tuple(rows_of_output(side, parts.length) for side in pair if side is not None)
            alike[pair[0].shape].append((rows[0], rows[1]))
    outputs = [order for pairs in alike.values() for order in _orders_of(pairs, parts)]
    return _Part(inputs, outputs)


def _orders_of(pairs: Sequence[_Pair], parts: Parts) -> list[Order]:
    """Say what order of time the calls of a layer, or outputs of one shape, show."""
    known = [(first, last) for first, last in pairs if first is not None and last is not None]
    if len(known) > 1 and all(last.numel() == 1 for _, last in known):
        # A loop over the tokens makes a row in each of its rounds.
        firsts, lasts = (torch.stack(side).flatten() for side in zip(*known, strict=True))
        return [order_of(firsts, lasts, parts)]
    return [order_in(first, last, parts) for first, last in known]
