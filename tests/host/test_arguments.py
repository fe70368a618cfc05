"""Arguments of a call, for trials that must not touch the caller's own."""

import torch
from torch import nn

from dynprune.host.arguments import copied, with_noise


class Cache:
    """Fills as it runs."""

    def __init__(self):
        self.keys = [torch.zeros(2)]


def test_a_copy_shares_no_tensor_and_no_cache_but_modules_and_functions():
    module, cache, x = nn.Linear(2, 2), Cache(), torch.randn(2, 3)
    call = ((x, [x, 5]), {"cache": cache, "module": module, "function": len, "none": None})
    (first, (second, number)), keywords = copied(call)
    assert torch.equal(first, x)
    for tensor in (first, second):
        tensor.zero_()
    keywords["cache"].keys[0].add_(1)
    assert x.abs().sum() > 0
    assert not cache.keys[0].any()
    assert keywords["module"] is module
    assert keywords["function"] is len
    assert (number, keywords["none"]) == (5, None)


def test_noise_has_variance_one_is_the_same_for_a_seed_and_leaves_integers():
    x, ids = torch.zeros(200, 50), torch.arange(3)
    (noisy, same), keywords = with_noise(((x, ids), {"scale": torch.zeros(1), "flag": True}))
    assert abs(float(noisy.std()) - 1) < 0.05
    assert torch.equal(same, ids)
    assert keywords["flag"] is True
    assert torch.equal(with_noise(x), with_noise(x))
    assert not torch.equal(with_noise(x), with_noise(x, seed=3))
    assert not x.any()
