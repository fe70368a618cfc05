"""Which rows belong to which instance: batch-first, sequence-first and folded rows."""

import pytest
import torch

from dynprune.errors import GateError
from dynprune.gate.instances import InstanceLayout, from_instances, to_instances

FIRST, SECOND, FOLDED = InstanceLayout(), InstanceLayout(1), InstanceLayout(0, folded=True)


@pytest.mark.parametrize("batch", [0, 1, 3])
@pytest.mark.parametrize(
    ("layout", "shape"),
    [
        (FIRST, lambda b: (b, 4, 5)),
        (FIRST, lambda b: (b, 5)),
        (FIRST, lambda b: (b, 2, 3, 5)),
        (SECOND, lambda b: (4, b, 5)),
        (FOLDED, lambda b: (b * 6, 4, 5)),
        (FOLDED, lambda b: (b * 6, 5)),
    ],
)
def test_every_instance_gets_all_its_rows_and_no_other_and_they_go_back(layout, shape, batch):
    x = torch.randn(shape(batch))
    axis = layout.axis
    owner = torch.arange(batch).repeat_interleave(x.shape[axis] // max(1, batch))
    x = owner.view([-1 if place == axis else 1 for place in range(x.dim())]).expand(x.shape)
    tokens = to_instances(x, batch, layout)
    assert tokens.shape[0] == batch
    assert (tokens.dim(), tokens.shape[2]) == (3, 5)
    assert batch == 0 or tokens.numel() == x.numel()
    for instance in range(batch):
        assert tokens[instance].eq(instance).all()
    assert torch.equal(from_instances(tokens, x, layout), x)


@pytest.mark.parametrize("layout", [FIRST, SECOND, FOLDED])
def test_a_narrow_result_keeps_its_width(layout):
    x = torch.randn(6, 6, 5)
    y = from_instances(to_instances(x, 6, layout)[..., :2], x, layout)
    assert torch.equal(y, x[..., :2])


def test_rows_that_do_not_divide_into_the_instances_are_refused():
    with pytest.raises(GateError, match=r"7 rows, which do not divide into the 2 inputs"):
        to_instances(torch.randn(7, 4, 5), 2, FOLDED)


@pytest.mark.parametrize("values", [{"axis": 2}, {"axis": True}, {"folded": 1}])
def test_a_layout_from_a_file_is_checked(values):
    with pytest.raises(GateError, match="axis is 0 or 1, folded a bool"):
        InstanceLayout(**values)
