"""Find out by running for which groups a gate would show earlier tokens what comes later.

A gate pools over the tokens of its group's input, so that each token is told of all of them. That
is nothing new where later tokens reach earlier ones anyway. Where they do not, in the group's own
input or in anything that comes after it, the gate would be a leak.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from dynprune.example import Example
from dynprune.graph.evidence import Evidence, all_mixed, evidence
from dynprune.graph.influence import Order, Parts
from dynprune.graph.neurons import NeuronGroup
from dynprune.graph.observed import Seen, Shift, changes, observe
from dynprune.graph.tokens import (
    Tokens,
    changed,
    cuts,
    ids_of,
    longer,
    sequences,
    special_ids,
    unmasked,
)
from dynprune.host.failures import first_line, reraise_ours
from dynprune.host.modes import at_inference
from dynprune.host.variation import cut

__all__ = ["Causality", "find_causality"]

logger = logging.getLogger(__name__)

#: Ids that are tried one by one where a model refuses other ones for all of them.
MOST_IDS = 6

#: What shows that later tokens reach earlier ones.
TOGETHER: frozenset[Order] = frozenset({"whole", "mutual"})

#: What shows nothing, since only the first tokens or only the last ones or none are in it.
SILENT: frozenset[Order] = frozenset({"untouched", "first", "last"})


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
        self.call = Example()
        self.reached: dict[str, _Reached] = {}
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
        known: list[Tensor] = []
        failures: list[tuple[Tokens, str]] = []
        for tokens in found:
            ids = ids_of(call, tokens)
            failure = self._try(call, base, tokens, cuts(tokens, ids, self.special))
            if failure is not None:
                failures.append((tokens, failure))
                continue
            tried.add(tokens.covered)
            known += [] if ids is None else [ids]
        failed = [ids for tokens, _ in failures if (ids := ids_of(call, tokens)) is not None]
        tried |= self._try_embeddings(call, base, known, failed)
        for tokens, failure in failures:
            if tokens.covered not in tried:
                self._cannot_try(base, f"{tokens.name} cannot be changed: {failure}", tokens.length)
        wider = longer(call)
        if wider is not None and not any(tokens.are_ids for tokens in found):
            self._lengthened(wider, base)
        return self._verdict()

    def _try_embeddings(
        self, call: Example, base: Seen, known: Sequence[Tensor], failed: Sequence[Tensor]
    ) -> set[tuple[int, ...]]:
        """Judge by ids that the model makes of its inputs, and by those that cannot be changed.

        Args:
            call: that was run.
            base: what it showed.
            known: ids that were tried.
            failed: ids that the model does not let be changed.

        Returns:
            Shapes of the ids that could be tried.
        """
        tried: set[tuple[int, ...]] = set()
        for place, ids in enumerate(base.looked_up):
            if ids.dim() != 2 or ids.shape[0] != call.batch or ids.shape[1] < 2:
                continue
            steps = ids.diff(dim=1)
            counted = bool((steps == steps[:, :1]).all())  # positions, or one kind of token
            if _is_among(ids, known) or (counted and not _is_among(ids, failed)):
                continue
            shape = tuple(ids.shape)
            tokens = Tokens("an embedding", place, 1, shape[1], True, False, shape)
            parts = cuts(tokens, ids, self.special)
            if self._try(call, base, tokens, parts, embedded=True) is None:
                tried.add(shape)
        return tried

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
        calls = [unmasked(alone), alone, unmasked(example)]
        small = cut(alone)
        if any(a is not b for a, b in zip(small.tensors, alone.tensors, strict=True)):
            calls.insert(0, unmasked(small))
        for call in calls:
            try:
                return self._start(call)
            except Exception as error:  # any model may refuse another batch, in its own words
                reraise_ours(error)
                logger.debug("The model does not take one instance: %s", error)
        return self._start(example)

    def _start(self, call: Example) -> tuple[Example, Seen]:
        seen = self._seen(call)
        self.call = call
        self.reached.clear()
        return call, seen

    def _seen(self, example: Example) -> Seen:
        return observe(self.model, self.watched, example)

    def _lengthened(self, wider: Example, base: Seen) -> None:
        """Judge by a call with several tokens where the example has one."""
        try:
            call, seen = self._start(wider)
        except Exception as error:  # any model may take one token alone
            reraise_ours(error)
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
                parts = cuts(tokens, ids_of(call, tokens), self.special)
                self._try(call, seen, tokens, parts, lengthened=True)

    def _try(
        self,
        call: Example,
        base: Seen,
        tokens: Tokens,
        parts: Sequence[tuple[Tensor, Tensor]],
        *,
        embedded: bool = False,
        lengthened: bool = False,
    ) -> str | None:
        """Judge by one sequence; say why where that cannot be done.

        Args:
            call: that was run.
            base: what it showed.
            tokens: the sequence.
            parts: places of the first and of the last tokens, for each try.
            embedded: whether the tokens are changed behind their embedding.
            lengthened: whether the user's has one token, so that it need not be a sequence.
        """
        judged: list[Evidence] = []
        for first, last in parts:
            late = self._change(call, tokens, last, embedded=embedded)
            if isinstance(late, str):
                return late
            after = changes(base, late)
            if after.reach_all_outputs and (tokens.is_picture or all_mixed(after, last)):
                continue  # nothing that comes later is new to what a gate would tell
            early = self._change(call, tokens, first, embedded=embedded)
            if isinstance(early, str):
                return early
            before = changes(base, early)
            if not (before and after) and len(first) > 1:
                return "other values of it change nothing"
            judged.append(
                evidence(
                    before,
                    after,
                    Parts(
                        tokens.length,
                        int(first[-1]) + 1,
                        tokens.length - int(last[0]),
                        call.batch == 1,
                        tokens.is_picture,
                    ),
                )
            )
        if judged:
            self._judge(base, judged, of_ids=tokens.are_ids and not lengthened)
        return None

    def _change(
        self, call: Example, tokens: Tokens, places: Tensor, *, embedded: bool
    ) -> Seen | str:
        """Run with some tokens of a sequence changed, or say why the model does not."""
        tries: list[int | None] = [None]
        ids = None if embedded else ids_of(call, tokens)
        if ids is not None:
            window = ids.index_select(tokens.axis, places.to(ids.device))
            tries += window.unique().tolist()[:MOST_IDS]
        failure = "no other value for it is known"
        for place, only in enumerate(tries):
            shift = Shift(tokens.place, places) if embedded else None
            other = call if embedded else changed(call, tokens, places, self.special, only)
            if other is None:
                continue
            try:
                return observe(self.model, self.watched, other, shift)
            except Exception as error:  # any model refuses values that it does not know
                reraise_ours(error)
                failure = failure if place else first_line(error)
        return failure

    def _judge(self, base: Seen, parts: Sequence[Evidence], *, of_ids: bool) -> None:
        """Find the layers whose gate would leak into what comes after them.

        Args:
            base: what the run with nothing changed showed.
            parts: what the changed ones showed.
            of_ids: whether tokens that never meet must not meet in a gate either.
        """
        inputs = {name: {o for p in parts for o in p.inputs[name]} for name in base.inputs}
        outputs = {key: {p.outputs[key] for p in parts} for key in parts[0].outputs}
        touched = {key: orders for key, orders in outputs.items() if not orders <= SILENT}
        apart = {key for key, orders in touched.items() if not TOGETHER & orders}
        for place, (name, own) in enumerate(inputs.items()):
            pooled = any(call.rows[..., 0].numel() > 1 for call in base.inputs[name])
            if name in self.causal or not pooled or own <= SILENT | {"whole"}:
                continue
            if "causal" in own:
                self.causal.add(name)
                continue
            later = {n for n in list(inputs)[place + 1 :] if "causal" in inputs[n]}
            ends = {key for key, orders in outputs.items() if "causal" in orders}
            if not later and not ends and not (of_ids and (apart or not touched)):
                continue
            reached = self._reached_from(name, base)
            if reached is None:
                self.causal.add(name)
                continue
            shown = {key for key in touched if any(reached.outputs[i] for i in key)}
            leaks = any(any(reached.inputs[n]) for n in later) or bool(ends & shown)
            if leaks or (of_ids and (not shown or bool(shown & apart))):
                self.causal.add(name)

    def _reached_from(self, name: str, base: Seen) -> "_Reached | None":
        """Say what the output of a layer reaches; None where that cannot be tried."""
        if name not in self.reached:
            try:
                seen = observe(self.model, self.watched, self.call, disturbed=self.watched[name])
            except Exception as error:  # the model's own code, on numbers that it does not expect
                reraise_ours(error)
                logger.debug("The model fails with another output of %s: %s", name, error)
                return None
            found = changes(base, seen)
            self.reached[name] = _Reached(
                {n: [_any(rows) for rows in calls] for n, calls in found.inputs.items()},
                [_any(rows) for rows in found.outputs],
            )
        return self.reached[name]


@dataclass
class _Reached:
    """Which calls of layers, and which outputs, a layer's output reaches."""

    inputs: dict[str, list[bool]]
    outputs: list[bool]


def _is_among(ids: Tensor, others: Sequence[Tensor]) -> bool:
    return any(ids.shape == other.shape and torch.equal(ids, other) for other in others)


def _any(rows: Tensor | None) -> bool:
    return rows is None or bool(rows.any())
