"""Operators that are free of products are known; every other one is named."""

import pytest
import torch
from torch import nn

from dynprune.example import Example
from dynprune.measure.executed import FORMULAS, count_executed
from dynprune.measure.macs import macs_report
from dynprune.measure.operators import has_no_products, plain_name
from tests.zoo import ZOO


@torch.library.custom_op("dynprune_tests::product", mutates_args=())
def product(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return x @ weight.t()


@product.register_fake
def _(x, weight):
    return x.new_empty(*x.shape[:-1], weight.shape[0])


class Foreign(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(4, 6)
        self.weight = nn.Parameter(torch.randn(5, 6))

    def forward(self, x):
        return product(self.first(x).relu(), self.weight)


CALL = Example((torch.randn(2, 3, 4),))
HANDLES = {"dynprune_tests::product": lambda args, out: out.numel() * args[0].shape[-1]}


def test_no_operator_with_a_formula_is_called_free():
    for name in FORMULAS:
        packet = getattr(torch.ops.aten, name, None)
        for overload in () if packet is None else packet.overloads():
            assert not has_no_products(getattr(packet, overload)), name


def test_an_operator_of_someones_own_is_named_and_not_zero_in_silence():
    found = count_executed(Foreign(), CALL)
    assert found.uncounted == {"dynprune_tests::product": 1}
    assert found.total == 2 * 3 * 4 * 6


def test_a_formula_of_ones_own_counts_and_names_no_more():
    found = count_executed(Foreign(), CALL, handles=HANDLES)
    assert (found.total, found.uncounted) == (2 * 3 * (4 * 6 + 6 * 5), {})
    assert found.by_op["dynprune_tests::product"] == 2 * 3 * 6 * 5


def test_a_formula_of_ones_own_goes_before_ours():
    found = count_executed(nn.Linear(4, 6, bias=False), CALL, handles={"mm": lambda args, out: 1})
    assert found.total == 1


def test_a_products_cost_that_is_only_hidden_in_another_operator_is_named():
    class Distances(nn.Module):
        def forward(self, x):
            return torch.cdist(x, x)

    assert count_executed(Distances(), CALL).uncounted == {"_cdist_forward": 1}


def test_the_report_names_what_it_lacks():
    report = macs_report(Foreign().eval(), CALL)
    assert report.uncounted == ("dynprune_tests::product",)
    assert report.to_json()["uncounted"] == ["dynprune_tests::product"]
    counted = macs_report(Foreign().eval(), CALL, handles=HANDLES)
    assert (counted.uncounted, counted.dense - report.dense) == ((), 2 * 3 * 6 * 5)


def test_plain_names_tell_whose_an_operator_is():
    assert plain_name(torch.ops.aten.add_.Tensor) == "add_"
    assert plain_name(torch.ops.dynprune_tests.product.default) == "dynprune_tests::product"


@pytest.mark.slow
@pytest.mark.parametrize("name", ZOO)
def test_every_operator_of_an_ordinary_model_is_counted_or_known_to_be_free(name):
    animal = ZOO[name]
    assert not count_executed(animal.build().eval(), animal.example()).uncounted
