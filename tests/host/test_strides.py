"""A parameter may be laid out anew and back with no bit changed."""

import torch
from torch import nn

from dynprune.host.strides import laid_out, owns_its_memory


def test_the_same_values_get_the_strides_that_are_asked_for():
    x = torch.randn(2, 3, 4, 5)
    for like in (x.contiguous(memory_format=torch.channels_last), x.mT.contiguous().mT):
        again = laid_out(x, like.stride())
        assert again.stride() == like.stride() != x.stride()
        assert torch.equal(again, x)
        assert torch.equal(laid_out(again, x.stride()), x)
    assert laid_out(x, x.stride()) is x


def test_a_view_of_a_larger_tensor_does_not_own_its_memory():
    flat = torch.zeros(20)
    assert owns_its_memory(nn.Parameter(torch.zeros(4, 5)))
    assert not owns_its_memory(nn.Parameter(flat[:10].view(2, 5)))
    assert not owns_its_memory(nn.Parameter(torch.zeros(5).expand(4, 5)))
