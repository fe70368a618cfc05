"""Laws of calls on models that remember more than one call."""

from tests.laws import nets


def test_a_model_that_remembers_a_call_breaks_repeated_calls(subject, statuses):
    assert statuses(subject(nets.MemoryWrong), "repeated calls") == {"repeated calls": "broken"}


def test_a_model_without_modules_cannot_be_interrupted(tmp_path):
    import torch
    from torch import nn

    from dynprune.example import Example
    from dynprune.laws import LAWS, Subject, judge

    class Bare(nn.Module):
        def forward(self, x):
            return x * 2

    subject = Subject(Bare(), Bare(), (Example((torch.randn(3, 5),)),), tmp_path)
    verdict = judge("after an exception", LAWS["after an exception"], subject)
    assert verdict.status == "not tried"
    assert "no modules" in verdict.detail
