"""A module is replaced at every place where it stands, and nowhere else."""

from torch import nn

from dynprune.host.replacing import replace_everywhere


def test_a_shared_module_is_replaced_at_every_parent():
    old, new = nn.Linear(2, 2), nn.Linear(2, 2)
    model = nn.Sequential(old, nn.Sequential(nn.ReLU(), old), nn.Linear(2, 2), old)
    other = model[2]
    replace_everywhere(model, {old: new})
    assert [model[0], model[1][1], model[3]] == [new] * 3
    assert model[2] is other


def test_what_holds_the_old_module_keeps_it():
    old = nn.Linear(2, 2)
    model, new = nn.Sequential(old), nn.Sequential(old)
    replace_everywhere(model, {old: new})
    assert model[0] is new
    assert new[0] is old
    replace_everywhere(model, {new: old})
    assert model[0] is old
