"""Head widths: what a host's attributes say while its heads are narrow, and afterwards."""

from torch import nn

from dynprune.gate.heads import HeadWidth, set_head_widths


class Host(nn.Module):
    def __init__(self):
        super().__init__()
        self.head_dim, self.all_heads = 8, 32


def test_one_head_is_as_wide_as_what_it_keeps_and_all_together_as_many_times():
    host = Host()
    widths = [HeadWidth(host, "head_dim", 8, True), HeadWidth(host, "all_heads", 32, False)]
    set_head_widths(widths, 3, 4)
    assert (host.head_dim, host.all_heads) == (3, 12)
    set_head_widths(widths, None, 4)
    assert (host.head_dim, host.all_heads) == (8, 32)
