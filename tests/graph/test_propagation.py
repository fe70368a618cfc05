"""Components of ties, and the owners of ids."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from dynprune.graph.propagation import Propagation, components

edges = st.lists(st.tuples(st.integers(0, 29), st.integers(0, 29)), max_size=60)


@given(edges)
def test_components_equal_those_of_a_plain_search(pairs):
    neighbours = {v: {v} for v in range(30)}
    for a, b in pairs:
        neighbours[a].add(b)
        neighbours[b].add(a)

    def reached(start: int) -> set[int]:
        seen, todo = set(), [start]
        while todo:
            here = todo.pop()
            if here not in seen:
                seen.add(here)
                todo += neighbours[here]
        return seen

    table = np.array(pairs, np.int64).reshape(-1, 2).T
    assert components(30, table).tolist() == [min(reached(v)) for v in range(30)]


def test_every_id_has_the_layer_that_makes_it():
    propagation = Propagation()
    layers = [
        propagation.layer(name, name, 1, size) for name, size in (("a", 3), ("b", 1), ("c", 5))
    ]
    for place, layer in enumerate(layers):
        made = propagation.made_by(layer).numpy()
        assert propagation.owner(made).tolist() == [place] * len(made)


def test_a_layer_asked_for_again_keeps_its_ids():
    propagation = Propagation()
    first = propagation.layer("a", "a", 1, 3)
    propagation.layer("b", "b", 1, 3)
    assert propagation.layer("a", "a", 1, 3) is first


def test_labels_are_tainted_only_if_all_their_neurons_are():
    propagation = Propagation()
    made = propagation.made_by(propagation.layer("a", "a", 1, 4))
    propagation.disqualify(made[:2], "because")
    assert propagation.is_disqualified(made[:2])
    assert not propagation.is_disqualified(made)


def test_equal_or_absent_labels_are_not_tied():
    propagation = Propagation()
    propagation.tie(torch.tensor([0, 3, 4]), torch.tensor([2, 3, 5]))
    assert [pair.tolist() for pair in propagation.ties] == [[[4], [5]]]
